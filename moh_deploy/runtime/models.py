"""The models that a runtime is chosen for: packages, and ONNX files that belong to none."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import ComputeType, Manifest, OnnxPackage, Runtime
from moh_deploy.runtime.apart import RunnerApart
from moh_deploy.runtime.base import AS_IT_IS, Deployed, Model, Runner, Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.onnxruntime.kernels import choose_kernels
from moh_deploy.runtime.onnxruntime.session import open_session, runtime_name
from moh_deploy.runtime.openvino.extension import choose_extension, openvino_name
from moh_deploy.runtime.openvino.runner import open_compiled


def _open(source: OnnxPackage | Path, variant: Variant) -> Runner:
    """Load a package's or a file's model into the runtime that the variant names.

    Raises:
        BackendError, ConfigError, PackageError: See `Model.open`.
    """
    # A runtime for such models adds its branch here, and its name to `Runtime`.
    if variant.runtime == "openvino":
        if variant.apart and variant.extra_outputs:
            return RunnerApart(open_compiled, source, variant)
        return open_compiled(source, variant)
    return open_session(source, variant)


def runtime_name_of(runtime: Runtime) -> str:
    """Return the name and version of a runtime, such as `ONNX Runtime 1.32.0`.

    Raises:
        BackendError: It is not installed.
    """
    if runtime == "openvino":
        return openvino_name()
    return runtime_name()


def runtime_for(asked: Runtime | None, preferred: Runtime | None) -> Runtime:
    """Return what runs a package: what is asked for, or else what the package was tuned for.

    Raises:
        BackendError: Nothing is asked for, and what it was tuned for is not installed.
    """
    if asked is not None or preferred is None:
        return asked or "onnxruntime"
    try:
        runtime_name_of(preferred)
    except BackendError as error:
        raise BackendError(
            f"the package was tuned for {preferred}, which is not here: {error.message}",
            hint=f"{error.hint or ''} --runtime onnxruntime runs it without, at another"
            " speed.".lstrip(),
        ) from error
    return preferred


def require_onnxruntime(package: str, preferred: Runtime | None, who: str) -> None:
    """Refuse a package that was tuned for another runtime, for who runs ONNX Runtime alone.

    Args:
        package: In words.
        preferred: What it was tuned for.
        who: The subject of a sentence.

    Raises:
        ConfigError: It was.
    """
    if preferred in (None, "onnxruntime"):
        return
    raise ConfigError(
        f"{package} was tuned for {preferred}, and {who} runs models in ONNX Runtime alone: at"
        " another speed than was measured.",
        hint="`moh-deploy tune DIR --within CONDITION --runtime onnxruntime` finds the fastest"
        " package for ONNX Runtime.",
    )


def kernels_of(variant: Variant, compute_type: ComputeType) -> KernelUse:
    """Say which kernels a model would run on, before one is opened.

    Raises:
        BackendError: The runtime is not installed, or its library is there and cannot be used.
    """
    if variant.runtime == "openvino":
        return choose_extension(variant, compute_type)[1]
    return choose_kernels(variant.kernels, compute_type=compute_type)


@dataclass(frozen=True)
class PackageDir(Deployed):
    """A package, which is read when it is first asked for something.

    Attributes:
        opened: The package, if it was read already.
    """

    root: Path
    opened: OnnxPackage | None = field(default=None, repr=False)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Take any directory, and what is missing: reading it says why it is no package."""
        # So it has to be asked last: see `open_runner`. Unlike `Path.is_file`, this never raises
        # where a directory may not be entered.
        return not os.path.isfile(path)

    @property
    def name(self) -> str:
        return f"package {self.root}"

    @cached_property
    def package(self) -> OnnxPackage:
        """The package, read when it is first asked for.

        Raises:
            PackageError: It is none, or has changed since it was written.
        """
        # Reading checks digests of all files, so a package that was read is not read again.
        return self.opened or OnnxPackage.open(self.root)

    @property
    def manifest(self) -> Manifest:
        return self.package.manifest

    @property
    def preferred_runtime(self) -> Runtime | None:
        """What the package was tuned for; see `Deployed.preferred_runtime`."""
        return self.manifest.runtime

    def made_from(self, package: Path | None, *, staged: bool = False) -> OnnxPackage:
        """Return the package itself; see `Deployed.made_from`."""
        if package is not None:
            raise ConfigError(f"package is {package}, but {self.root} is no engine: leave it out.")
        return OnnxPackage.open(self.root, staged=staged) if staged else self.package

    def open(self, variant: Variant = AS_IT_IS) -> Runner:
        return _open(self.package, variant)

    def import_runtime(self, runtime: Runtime) -> None:
        runtime_name_of(runtime)

    def alone(self, variant: Variant) -> tuple[Model, Variant] | None:
        """Return the package's model by itself: reading a package takes time of its own."""
        # A bare model file has no manifest, so what that allows goes along with the variant.
        compute_type = variant.compute_type or self.manifest.compute_type
        return OnnxFile(self.package.model_path), replace(variant, compute_type=compute_type)


@dataclass(frozen=True)
class OnnxFile(Model):
    """An ONNX model that belongs to no package."""

    path: Path

    @staticmethod
    def is_one(path: Path) -> bool:
        """Go by the name: a file that is missing is no package either."""
        return path.suffix == ".onnx" and not os.path.isdir(path)

    @property
    def name(self) -> str:
        return f"ONNX model {self.path}"

    def open(self, variant: Variant = AS_IT_IS) -> Runner:
        return _open(self.path, variant)

    def import_runtime(self, runtime: Runtime) -> None:
        runtime_name_of(runtime)

"""The models that ONNX Runtime opens: packages, and ONNX files that belong to none."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.runtime.base import AS_IT_IS, Deployed, Model, Variant
from moh_deploy.runtime.onnxruntime.session import OrtRunner, open_session, runtime_name


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
        # So it has to be asked last: see `open_runner`.
        return not path.is_file()

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

    def made_from(self, package: Path | None, *, staged: bool = False) -> OnnxPackage:
        """Return the package itself; see `Deployed.made_from`."""
        if package is not None:
            raise ConfigError(f"package is {package}, but {self.root} is no engine: leave it out.")
        return OnnxPackage.open(self.root, staged=staged) if staged else self.package

    def open(self, variant: Variant = AS_IT_IS) -> OrtRunner:
        return open_session(self.package, variant)

    def import_runtime(self) -> None:
        runtime_name()

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
        return path.suffix == ".onnx" and not path.is_dir()

    @property
    def name(self) -> str:
        return f"ONNX model {self.path}"

    def open(self, variant: Variant = AS_IT_IS) -> OrtRunner:
        return open_session(self.path, variant)

    def import_runtime(self) -> None:
        runtime_name()

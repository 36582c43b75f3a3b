"""What is verified: a package as it runs here, or an engine with the package it was built from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.runtime.onnxruntime.variants import OrtVariants
from moh_deploy.runtime.runner import Kernels, Runner
from moh_deploy.runtime.tensorrt.engine_dir import EngineManifest
from moh_deploy.runtime.tensorrt.engine_reading import is_engine_dir, read_engine_dir
from moh_deploy.runtime.tensorrt.engine_runs import engines_package, fitting, open_engine
from moh_deploy.validate.layer_values import names_to_return
from moh_deploy.validate.reference import RECORDED
from moh_deploy.validate.variants import Variants


class Loaded(NamedTuple):
    """What runs, its variants if there are any, and what gives its memory back."""

    runner: Runner
    variants: Variants | None
    closing: AbstractContextManager[object]


@dataclass(frozen=True)
class Subject:
    """A package or an engine, read and not loaded.

    Attributes:
        root: Its directory.
        package: The package, or the one that the engine was built from, of the engine's precision.
        kernels: What runs MoH nodes.
        engine: What the engine says of itself; None for a package.
    """

    root: Path
    package: OnnxPackage
    kernels: Kernels
    engine: EngineManifest | None = None

    @property
    def name(self) -> str:
        """What it is, in the words of a report."""
        return f"engine {self.root}" if self.engine else f"package {self.root}"

    @property
    def has_gates(self) -> bool:
        """It returns the gates of its layers. An engine does not."""
        return self.engine is None

    def recorded(self) -> tuple[tuple[VectorSet, ...], str]:
        """Return the recorded runs that it can repeat, and what they are in words.

        Raises:
            ConfigError: The engine was built for none of their sizes.
        """
        if self.engine is None:
            return self.package.vectors, RECORDED
        words = f"{RECORDED}, those of sizes that the engine was built for"
        return fitting(self.root, self.engine, self.package.vectors), words

    def load(self) -> Loaded:
        """Load it.

        Raises:
            BackendError: The runtime failed, or the engine cannot run here.
        """
        if self.engine is not None:
            runner = open_engine(self.root, self.kernels)
            return Loaded(runner, None, runner.engine)
        values = names_to_return(self.package)
        session = open_session(self.package, kernels=self.kernels, extra_outputs=values)
        return Loaded(session, OrtVariants(self.package, self.kernels), nullcontext())


def read_subject(
    root: Path, package: Path | None, kernels: Kernels, *, staged: bool = False
) -> Subject:
    """Read a package, or an engine and its package.

    Raises:
        PackageError: It is neither, or has changed since it was written.
        ConfigError: `package` is given for a package, or not the one that the engine was built
            from.
    """
    if is_engine_dir(root):
        engine = read_engine_dir(root)
        return Subject(root, engines_package(root, engine, package), kernels, engine)
    if package is not None:
        raise ConfigError(f"package is {package}, but {root} is no engine: leave it out.")
    return Subject(root, OnnxPackage.open(root, staged=staged), kernels)

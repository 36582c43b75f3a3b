"""Open whatever a path names. No other place knows what a path may be."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import AS_IT_IS, Deployed, Model, Runner, Variant
from moh_deploy.runtime.models import OnnxFile, PackageDir
from moh_deploy.runtime.tensorrt.models import EngineDir

# The first that takes a path is what it is, so the order matters: PackageDir takes any directory,
# engines too, and has to be last. A runtime adds its kinds of paths here.
_KINDS = (EngineDir, OnnxFile, PackageDir)


def find_model(path: Path | str) -> Model | None:
    """Find the kind of model that a path names, without reading more than tells it.

    Returns:
        None for a file of no kind that is known. A checkpoint is none: how it is loaded has to be
        said, so whoever loads it hands over an `OriginalModel`.
    """
    return next((kind(Path(path)) for kind in _KINDS if kind.is_one(Path(path))), None)


def find_deployed(root: Path | str) -> Deployed:
    """Find the package or engine in a directory that moh-deploy wrote.

    What it cannot be is taken for a package: reading it says what is wrong.
    """
    found = find_model(root)
    return found if isinstance(found, Deployed) else PackageDir(Path(root))


def opened_package(package: OnnxPackage) -> Deployed:
    """Return a package that was read already."""
    return PackageDir(package.root, package)


def onnx_file(path: Path) -> Model:
    """Return a file that is taken for an ONNX model, whatever it is called."""
    return OnnxFile(path)


def open_runner(source: OnnxPackage | Path | str, variant: Variant = AS_IT_IS) -> Runner:
    """Open a package that was read, or what a path names, in one way.

    Raises:
        BackendError: The runtime is not there, refuses the model, or kernels are required and not
            used.
        ConfigError: The path names nothing that runs, or the variant is none of this model.
        PackageError: It cannot be read, or has changed since it was written.
    """
    if isinstance(source, OnnxPackage):
        return opened_package(source).open(variant)
    model = find_model(source)
    if model is None:
        raise ConfigError(f"{source} is no package, engine or ONNX model.")
    return model.open(variant)

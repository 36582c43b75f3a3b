"""Open whatever a path names. No other place knows what a path may be."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import AS_IT_IS, Deployed, Model, Runner, Variant
from moh_deploy.runtime.onnxruntime.models import OnnxFile, PackageDir
from moh_deploy.runtime.tensorrt.models import EngineDir

# The first that takes a path is what it is. A runtime adds its kinds of paths here.
_KINDS = (EngineDir, OnnxFile, PackageDir)


def find_model(source: OnnxPackage | Path | str) -> Model:
    """Return what a path names, without reading more of it than tells its kind; or a package that
    was read."""
    if isinstance(source, OnnxPackage):
        return PackageDir(source.root, source)
    return next(kind(Path(source)) for kind in _KINDS if kind.is_one(Path(source)))


def find_deployed(root: Path | str) -> Deployed:
    """Return what a directory names, which moh-deploy wrote.

    What it cannot be is taken for a package: reading it says what is wrong.
    """
    found = find_model(root)
    return found if isinstance(found, Deployed) else PackageDir(Path(root))


def open_runner(source: OnnxPackage | Path | str, variant: Variant = AS_IT_IS) -> Runner:
    """Open a package that was read, or what a path names, in one way.

    Raises:
        BackendError: The runtime is not there, refuses the model, or kernels are required and not
            used.
        ConfigError: The variant is none of this model.
        PackageError: It cannot be read, or has changed since it was written.
    """
    return find_model(source).open(variant)

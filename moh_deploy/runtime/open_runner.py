"""Open whatever a path names. No other place knows what a path may be."""

import os
from pathlib import Path
from typing import cast

from moh_deploy.add_ons import entry_points, missing_metadata
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.runtime.base import AS_IT_IS, Deployed, Model, ModelKind, Runner, Variant
from moh_deploy.runtime.models import OnnxFile, PackageDir


def find_model(path: Path | str) -> Model | None:
    """Find the kind of model that a path names, without reading more than tells it.

    Returns:
        None for a file of unknown kind, and for a checkpoint: how it is loaded has to be
        said, so its loader hands over an `OriginalModel`.

    Raises:
        BackendError: It is a directory and no package, and an add-on that may know it is broken.
    """
    path = Path(path)
    # By its name alone: the cheapest question first.
    if OnnxFile.is_one(path):
        return OnnxFile(path)
    # Add-ons are loaded for what is neither package nor ONNX file alone.
    if not os.path.exists(path / MANIFEST_NAME):
        problem = missing_metadata()
        for point in entry_points("model_kinds").values():
            try:
                kind = cast(ModelKind, point.load(type))
            except BackendError as error:
                problem = error
                continue
            if kind.is_one(path):
                return kind(path)
        if problem is not None and os.path.isdir(path):
            raise problem
    return PackageDir(path) if PackageDir.is_one(path) else None


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
        ConfigError: The path names nothing that runs, or the variant is not for this model.
        PackageError: It cannot be read, or has changed since it was written.
    """
    if isinstance(source, OnnxPackage):
        return opened_package(source).open(variant)
    model = find_model(source)
    if model is None:
        raise ConfigError(f"{source} is no package, engine or ONNX model.")
    return model.open(variant)

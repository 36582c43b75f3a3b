"""The files of a package that hold its model: weights inside, or beside it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from moh_deploy.package.external_data import MODEL_DATA_NAME, MODEL_NAME
from moh_deploy.package.onnx_file import save_with_weights
from moh_deploy.package.onnx_package import OnnxPackage


def save_model(model: ir.Model, package: OnnxPackage, root: Path) -> None:
    """Write a model as a package's: its weights beside it where the package keeps them there."""
    if MODEL_DATA_NAME in package.manifest.files:
        ir.save(model, root / MODEL_NAME, external_data=MODEL_DATA_NAME)
    else:
        save_with_weights(model, root / MODEL_NAME)


def model_bytes(package: OnnxPackage) -> int:
    """Return the size of the model with its weights."""
    names = (MODEL_NAME, MODEL_DATA_NAME)
    return sum((package.root / n).stat().st_size for n in names if (package.root / n).is_file())

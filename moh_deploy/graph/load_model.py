"""Load the model of a package to change it."""

from __future__ import annotations

import onnx_ir as ir

from moh_deploy.errors import PackageError
from moh_deploy.graph.drop_stack_traces import drop_stack_traces
from moh_deploy.package.onnx_package import OnnxPackage


def load_ir(package: OnnxPackage) -> ir.Model:
    """Return the model; its weights stay on the disk until they are read.

    Raises:
        PackageError: It is a file of ONNX, but no model: what it says contradicts itself.
    """
    try:
        model = ir.load(package.model_path)
    except Exception as error:  # onnx-ir fails in many ways at what it does not expect
        raise PackageError(
            f"{package.model_path} cannot be read as a model: {type(error).__name__}: {error}."
        ) from error
    drop_stack_traces(model)  # Packages of before 0.2 hold them.
    return model

"""Find out the dtype and shape of every value: a package holds those of inputs and outputs only."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from moh_deploy.errors import PackageError


def infer_types(model: ir.Model) -> bool:
    """Write dtypes, and shapes as far as they are known, onto the values of the graph.

    Raises:
        PackageError: A value has no dtype that onnx could infer.
    """
    before = _known(model)
    ShapeInferencePass(check_type=False, data_prop=True)(model)
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None and value.name:
                raise PackageError(
                    f"model.onnx: the dtype of '{value.name}' ({node.op_type}) cannot be inferred."
                )
    return _known(model) != before


def _known(model: ir.Model) -> list[str]:
    values = (value for node in model.graph.all_nodes() for value in node.outputs)
    return [f"{value.type} {value.shape}" for value in values]

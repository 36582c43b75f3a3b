"""Count the multiply-adds of a model's products with weights, at some sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from moh_deploy.config.dims import size_at
from moh_deploy.ops import op_names

_PRODUCTS = ("MatMul", "Gemm", op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)


def product_flops(model: ir.Model, sizes: Mapping[str, int]) -> int | None:
    """Return 2 * rows * elements of the weight, summed over all products with a stored matrix.

    Args:
        model: The shapes of its values are known.
        sizes: Of the dynamic dimensions.

    Returns:
        None where the rows of a product are not known.
    """
    total = 0
    for node in model.graph:
        if node.op_type not in _PRODUCTS:
            continue
        weight, made = node.inputs[1], node.outputs[0]
        if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        rows = [
            size_at(dim if isinstance(dim, int) else dim.value, sizes)
            for dim in (made.shape or ())[:-1]
        ]
        if made.shape is None or any(size is None for size in rows):
            return None
        total += 2 * math.prod(size or 0 for size in rows) * weight.const_value.size
    return total


def parameters(model: ir.Model) -> int:
    """Return how many numbers the stored floats of a model are."""
    stored = (value.const_value for value in model.graph.initializers.values())
    return sum(
        tensor.size for tensor in stored if tensor is not None and tensor.dtype.is_floating_point()
    )

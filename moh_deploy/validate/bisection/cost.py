"""Estimate which part of a model's work some of its nodes do."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import onnx

from moh_deploy.graph.flops import attention_flops
from moh_deploy.ops import op_names
from moh_deploy.validate.bisection.inner_values import InnerValue
from moh_deploy.validate.bisection.places import ModelGraph, what_runs

_PRODUCTS = ("MatMul", "Gemm", "Conv", op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)


def flops_share(
    graph: ModelGraph, values: Mapping[str, InnerValue], chosen: Collection[str]
) -> float | None:
    """Return the part of the multiply-adds in products and attention cores that nodes have.

    Args:
        graph: The model's.
        values: Its inner values, for their shapes.
        chosen: First outputs of the nodes.

    Returns:
        None if nothing was counted.
    """
    # Weights are no inner values, and a product's number of terms may stand in their shape alone.
    weights = {one.name: tuple(one.dims) for one in graph.graph.initializer}
    shapes = {**{name: one.shape for name, one in values.items()}, **weights}
    # An attention node does two products in one, and counts by its own formula.
    attention = {one.node: attention_flops(one) for one in graph.layers if one.node}
    flops = {
        node.output[0]: attention.get(what_runs(node).name) or _product_flops(node, shapes)
        for node in graph.nodes
    }
    # Shares of what was counted: additions, norms and softmax are left out on both sides.
    total = sum(flops.values())
    return sum(flops[name] for name in chosen) / total if total else None


def _product_flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    made = shapes.get(node.output[0])
    if node.op_type not in _PRODUCTS or made is None:
        return 0
    # A multiplication and an addition for each term.
    return 2 * math.prod(made) * _terms(node, shapes)


def _terms(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many products are summed for one number of the result."""
    first, second = (shapes.get(name, ()) for name in node.input[:2])
    if node.op_type == "Conv":
        # Weights of Conv: [out, in / groups, kernel...].
        return math.prod(second[1:])
    transposed = {one.name: one.i for one in node.attribute}
    if node.op_type == "Gemm" and first:
        return first[0] if transposed.get("transA") else first[-1]
    if first:
        return first[-1]
    # [..., K] @ [K, N]: the first one's shape is not known, so K is taken from the weights.
    return second[-2] if len(second) > 1 else 0

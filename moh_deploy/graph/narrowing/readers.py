"""Let the projection behind some heads read these alone: cut its rows, however heads come there."""

from __future__ import annotations

import onnx_ir as ir

from moh_deploy.graph.narrowing.narrowing import (
    Entries,
    Narrowing,
    NotNarrowedError,
    constant,
    dims_of,
)
from moh_deploy.graph.narrowing.reshaped import resized, source_axis
from moh_deploy.graph.narrowing.rules import linear
from moh_deploy.ops import op_names


def narrow_projection(
    narrowing: Narrowing, heads: ir.Value, narrow: ir.Value, axis: int, kept: Entries
) -> None:
    """Replace the product that reads a value by one that reads some entries of it.

    Args:
        heads: All heads, [B, S, H*D] or [B, H, S, D].
        narrow: The kept ones, in the same form; made by whoever calls.
        axis: The axis that has heads.
        kept: Entries of `heads` along it.

    Raises:
        NotNarrowedError: Something else reads it. Nothing has been replaced then.
    """
    uses = heads.uses()
    if len(uses) != 1 or heads.is_graph_output():
        raise NotNarrowedError(f"its heads, '{heads.name}', are read by more than a projection")
    (use,) = uses
    node, op = use.node, use.node.op_type
    if use.idx == 0 and op in _VIEWS:
        after = node.outputs[0]
        along, entries = _VIEWS[op](node, heads, axis, kept)
        inputs = [narrow, *node.inputs[1:]]
        if op == "Reshape":
            shape = node.inputs[1]
            assert shape is not None
            inputs[1] = resized(narrowing, node, shape, along, len(entries))
        view = narrowing.again(after, along, entries, inputs)
        narrow_projection(narrowing, after, view, along, entries)
        return
    summed = 1 if op == "Conv" else len(dims_of(heads)) - 1
    if use.idx != 0 or op not in _PRODUCTS or axis != summed:
        raise NotNarrowedError(f"its heads, '{heads.name}', are read by {op}, not by a projection")
    groups = node.attributes.get("group")
    if groups is not None and groups.as_int() > 1:
        raise NotNarrowedError(
            f"its heads, '{heads.name}', are read by a convolution of {groups.as_int()} groups, not"
            " by a projection"
        )
    _replace(narrowing, node, narrow, kept)


def _replace(narrowing: Narrowing, node: ir.Node, narrow: ir.Value, kept: Entries) -> None:
    """Y = X W + bias: rows of W, which a convolution has on axis 1 of its weight [O, I, ...]."""
    weight, result = node.inputs[1], node.outputs[0]
    assert weight is not None
    transposed = node.op_type == "Gemm" and "transB" in node.attributes
    is_column = transposed and node.attributes["transB"].as_int() == 1
    rows = 1 if is_column or node.op_type == "Conv" else len(dims_of(weight)) - 2
    weight = narrowing.narrowed(weight, rows, kept)
    if node.op_type == op_names.OUTPUT_PROJECTION:
        bias = node.inputs[3] if len(node.inputs) > 3 else None
        made = linear(narrowing, node, narrow, weight, bias, result.shape)
    else:
        inputs = [narrow, weight, *node.inputs[2:]]
        again = narrowing.node(
            node, node.op_type, inputs, node.attributes.values(), like=node.outputs
        )
        made = again.outputs[0]
        made.shape = result.shape
    result.replace_all_uses_with(made, replace_graph_outputs=True)
    # Readers and outputs of the model know the name.
    made.name, result.name = result.name, made.name


def _transposed(node: ir.Node, heads: ir.Value, axis: int, kept: Entries) -> tuple[int, Entries]:
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
    rank = len(dims_of(heads))
    return (list(order) if order else list(reversed(range(rank)))).index(axis), kept


def _reshaped(node: ir.Node, heads: ir.Value, axis: int, kept: Entries) -> tuple[int, Entries]:
    # The elements are the same on both sides, so either may be asked for those of the other.
    return source_axis(node.outputs[0], heads, axis, kept)


def _squeezed(node: ir.Node, heads: ir.Value, axis: int, kept: Entries) -> tuple[int, Entries]:
    """Axes of size 1 come or go; the others keep their order."""
    before, after = dims_of(heads), dims_of(node.outputs[0])
    longer, shorter = (before, after) if len(before) > len(after) else (after, before)
    stored = constant(node.inputs[1])
    if stored is None:
        raise NotNarrowedError(f"'{node.outputs[0].name}' has axes that are chosen at run time")
    moved = {int(number) % len(longer) for number in stored}
    left = [number for number in range(len(longer)) if number not in moved]
    assert len(left) == len(shorter)
    return (left.index(axis) if longer is before else left[axis]), kept


def _same(node: ir.Node, heads: ir.Value, axis: int, kept: Entries) -> tuple[int, Entries]:
    return axis, kept


_VIEWS = {
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "Squeeze": _squeezed,
    "Unsqueeze": _squeezed,
    "Identity": _same,
    "Cast": _same,
}
_PRODUCTS = ("MatMul", "Gemm", "Conv", op_names.OUTPUT_PROJECTION)

"""Find the inputs that are looked up in a table, such as token ids in the table of embeddings.

A run fails at a number that the table has no row for, with a message about some inner node. What
the inputs may hold tells whose fault that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

# Each element of what they return is one of their first input: of a Concat, of any input.
_KEEP_VALUES = frozenset(
    ("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze")
    + ("Tile", "Transpose", "Unsqueeze")
)
_KEEP_SHAPE = frozenset(("Cast", "DequantizeLinear", "Identity"))


def table_rows(graph: onnx.GraphProto, *, whole: bool = False) -> dict[str, int]:
    """Return, for each input that is looked up in a table of known size, the number of its rows.

    The graph is Gather (table, indices), the indices made of the input by operators that only move
    elements. Inputs that are computed with before, or clipped, are none of these.

    Args:
        whole: Leave out inputs of which a part may be looked up, and another part not.
    """
    keep = _KEEP_VALUES - {"Slice", "Split"} if whole else _KEEP_VALUES
    weights = {one.name for one in graph.initializer}
    origins = {one.name: one.name for one in graph.input if one.name not in weights}
    shapes = _shapes(graph)
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Gather":
            rows = _rows(node, shapes)
            origin = origins.get(node.input[1])
            if origin is not None and rows is not None:
                found[origin] = min(rows, found.get(origin, rows))
        elif node.op_type in keep:
            read = node.input if node.op_type == "Concat" else node.input[:1]
            origin = next((origins[name] for name in read if name in origins), None)
            if origin is not None:
                origins.update(dict.fromkeys(node.output, origin))
    return found


def _rows(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int | None]]) -> int | None:
    """Return the size of the axis that a Gather picks from; None where it is not known."""
    axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
    shape = shapes.get(node.input[0], ())
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _shapes(graph: onnx.GraphProto) -> dict[str, Sequence[int | None]]:
    shapes: dict[str, Sequence[int | None]] = {
        value.name: [
            one.dim_value if one.HasField("dim_value") else None
            for one in value.type.tensor_type.shape.dim
        ]
        for value in graph.value_info
    }
    shapes |= {one.name: one.dims for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors = (one.t.dims for one in node.attribute if one.name == "value")
            shapes[node.output[0]] = next(tensors, ())
        # Tables of small integers have no shape written down behind them.
        elif node.op_type in _KEEP_SHAPE and node.input[0] in shapes:
            shapes.setdefault(node.output[0], shapes[node.input[0]])
    return shapes

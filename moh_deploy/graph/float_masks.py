"""Turn bool masks of plugins into masks that are added: TensorRT's plugins take no bool."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

_MASK = 4  # attn_mask is the fifth input of MoHAttention


def float_masks(model: ir.Model, nodes: Collection[str]) -> bool:
    """Give attention nodes, instead of a bool mask, one with 0 where a key is seen, else -inf.

    A mask that several nodes read is turned once for all of one dtype. It keeps its shape, which
    seldom has an axis of heads.

    Args:
        nodes: Names of the nodes, in the main graph.
    """
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in [found for found in model.graph if found.name in nodes]:
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        query = node.inputs[0]
        if mask is None or mask.dtype != ir.DataType.BOOL:
            continue
        assert query is not None
        assert query.dtype is not None
        key = (mask, query.dtype)
        if key not in made:
            made[key] = _added_mask(model, node, mask, query.dtype)
        node.replace_input_with(_MASK, made[key])
    return bool(made)


def _added_mask(model: ir.Model, first: ir.Node, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Write Where(mask, 0, -inf) in front of the first node that reads it."""
    name = f"{mask.name} (added, {dtype.name.lower()})"
    seen, hidden = (
        _constant(model, f"{name}: {word}", number, dtype)
        for word, number in (("seen", 0.0), ("hidden", -np.inf))
    )
    where = ir.node("Where", [mask, seen, hidden], name=name)
    (added,) = where.outputs
    added.name, added.dtype, added.shape = name, dtype, mask.shape
    model.graph.insert_before(first, where)
    return added


def _constant(model: ir.Model, name: str, number: float, dtype: ir.DataType) -> ir.Value:
    array = np.asarray(number, dtype.numpy())
    value = ir.Value(
        name=name,
        type=ir.TensorType(dtype),
        shape=ir.Shape(()),
        const_value=ir.Tensor(array, name=name, dtype=dtype),
    )
    model.graph.register_initializer(value)
    return value

"""Store weights as products read them, where the graph rearranges what is stored at each run."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from moh_deploy.ops import is_moh_op
from moh_deploy.system.npz import Array

# Rearranging keeps the bits, and the size: three slices of a packed weight are as large as it is.
_REARRANGING = frozenset(
    {"Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def store_rearranged(model: ir.Model, products: Collection[str]) -> bool:
    """Let products read stored matrices: those that slices, transpositions and reshapes make of
    stored weights.

    Runtimes do that when they load a model; who looks at the graph, as a quantiser does, sees no
    weights otherwise.

    Args:
        products: Operators whose second input is a weight.
    """
    folded = False
    for node in model.graph:
        is_known = not node.domain or is_moh_op(node.domain, node.op_type)
        if not is_known or node.op_type not in products or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        if weight is None or weight.producer() is None:
            continue
        array = _stored(weight, model.opset_imports[""])
        if array is not None:
            _store(model, weight, array)
            folded = True
    return folded


def _stored(value: ir.Value, opset: int) -> Array | None:
    """Return what a value holds if it is a stored weight, or one that was rearranged."""
    node = value.producer()
    if node is None:
        return None if value.const_value is None else value.const_value.numpy()
    if node.domain or node.op_type not in {*_REARRANGING, "Constant"}:
        return None
    given: dict[str, Array] = {}
    for operand in node.inputs:
        if operand is None:
            continue
        array = _stored(operand, opset)
        if array is None or operand.name is None:
            return None
        given[operand.name] = array
    return _run(node, value, given, opset)


def _run(node: ir.Node, value: ir.Value, given: dict[str, Array], opset: int) -> Array:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in given.items()
    ]
    graph = helper.make_graph(
        [ir.serde.serialize_node(node)],
        "rearranged",
        inputs,
        [onnx.ValueInfoProto(name=value.name)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    (found,) = ReferenceEvaluator(model).run([value.name], given)
    return np.ascontiguousarray(found)


def _store(model: ir.Model, value: ir.Value, array: Array) -> None:
    """Put a weight in the place of the node that made it, for all who read it."""
    assert value.name is not None
    name = f"{value.name}.stored"
    weight = model.graph.initializers.get(name)
    if weight is None:
        weight = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
            const_value=ir.Tensor(array, name=name),
        )
        model.graph.register_initializer(weight)
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, weight)
    _drop(model, value)


def _drop(model: ir.Model, value: ir.Value) -> None:
    """Drop what made a value that nobody reads any more, stored weights included."""
    if value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is None:
        model.graph.initializers.pop(value.name or "", None)
        return
    if any(output.uses() for output in node.outputs):
        return
    inputs = [value for value in node.inputs if value is not None]
    model.graph.remove(node, safe=True)
    for operand in inputs:
        _drop(model, operand)

"""Cut one node of a custom op out as a model of its own, to be built and timed by itself."""

from __future__ import annotations

import onnx
import onnx_ir as ir


def fed_values(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return what a node reads that is no constant of the model, each once."""
    read = (value for value in node.inputs if value is not None and value.const_value is None)
    return tuple(dict.fromkeys(read))


def node_model(model: ir.Model, node: ir.Node) -> ir.Model:
    """Return a model of one node, with its body: it is fed what `fed_values` are.

    Args:
        model: With a function body for the node; values have dtypes and shapes.
    """
    constants = {
        value.name: value
        for value in node.inputs
        if value is not None and value.const_value is not None
    }
    graph = onnx.GraphProto(name=node.name or node.op_type)
    graph.input.extend(map(ir.serde.serialize_value, fed_values(node)))
    graph.output.extend(map(ir.serde.serialize_value, node.outputs))
    graph.node.append(ir.serde.serialize_node(node))
    graph.initializer.extend(map(_tensor, constants.values()))
    bodies = [function for key, function in model.functions.items() if key == node.op_identifier()]
    opsets = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    proto = onnx.helper.make_model(
        graph,
        functions=[ir.serde.serialize_function(body) for body in bodies],
        opset_imports=opsets,
        ir_version=model.ir_version,
    )
    return ir.from_proto(proto)


def _tensor(value: ir.Value) -> onnx.TensorProto:
    assert value.const_value is not None
    # Data in another file, too, moves into the small model.
    return ir.serde.serialize_tensor(ir.Tensor(value.const_value.numpy(), name=value.name))

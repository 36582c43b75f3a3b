"""Which operators ONNX Runtime cannot run, found out by asking it for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from moh_deploy.backends.onnxruntime import loads


def unsupported_operators(model: ir.Model, dtype: str) -> tuple[str, ...]:
    """Return the operators that ONNX Runtime on the CPU has no kernel for in this dtype.

    Each is asked for by itself, in a model of one node; operators that are functions of the model
    count as what they are made of, so they are left out, and so are operators with branches: what
    stands in those is asked for.

    Args:
        model: Its values have dtypes.
        dtype: `bfloat16` and the like: nodes that neither read nor make it are left out.
    """
    one_each = {
        node.op_identifier(): node
        for node in model.graph.all_nodes()
        if _uses(node, dtype) and not _has_branches(node)
    }
    return tuple(
        sorted(
            node.op_type
            for identifier, node in one_each.items()
            if identifier not in model.functions
            and not loads(ir.to_proto(_alone(node, model)).SerializeToString())
        )
    )


def _uses(node: ir.Node, dtype: str) -> bool:
    return any(
        value is not None and value.dtype is not None and str(value.dtype.numpy()) == dtype
        for value in (*node.inputs, *node.outputs)
    )


def _has_branches(node: ir.Node) -> bool:
    return any(one.type == ir.AttributeType.GRAPH for one in node.attributes.values())


def _alone(node: ir.Node, model: ir.Model) -> ir.Model:
    """Return a model of this node only, whose inputs are graph inputs, but for constants."""
    values = {v.name: _copied(v) for v in (*node.inputs, *node.outputs) if v is not None}
    inputs = [None if v is None else values[v.name] for v in node.inputs]
    outputs = [values[v.name] for v in node.outputs]
    copy = ir.Node(
        node.domain, node.op_type, inputs, node.attributes.values(), outputs=outputs, name=node.name
    )
    read = list(dict.fromkeys(_present(inputs)))
    graph = ir.Graph(
        [value for value in read if value.const_value is None],
        outputs,
        nodes=[copy],
        initializers=[value for value in read if value.const_value is not None],
        opset_imports=model.opset_imports,
        name=node.op_type,
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _present(values: list[ir.Value | None]) -> Iterator[ir.Value]:
    return (value for value in values if value is not None)


def _copied(value: ir.Value) -> ir.Value:
    copy = ir.Value(name=value.name, type=value.type, shape=value.shape)
    weight = value.const_value
    small = weight is not None and weight.size <= 16  # axes, shapes, scales
    copy.const_value = weight if small else None
    return copy

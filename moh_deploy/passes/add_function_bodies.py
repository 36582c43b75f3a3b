"""Give every custom op a body in standard operators, for runtimes without the kernel."""

from __future__ import annotations

import onnx_ir as ir

from moh_deploy.ops import OPS
from moh_deploy.ops.spec import (
    PLUGIN_ATTRIBUTES,
    Attributes,
    OpSpec,
    TensorType,
    TensorTypes,
)


def add_function_bodies(model: ir.Model, *, opset: int) -> None:
    """Add one function for each op, or, where its nodes need different bodies, one overload for
    each.

    Overloads are a last resort: some readers look functions up by name only.
    """
    for spec in OPS.values():
        nodes = [
            node
            for node in model.graph.all_nodes()
            if (node.domain, node.op_type) == (spec.domain, spec.name)
        ]
        keys = [spec.variant(_types(node), _attributes(spec, node)).key() for node in nodes]
        for node, key in zip(nodes, keys, strict=True):
            node.overload = key if len(set(keys)) > 1 else ""
            _add(model, spec, node, opset)


def _add(model: ir.Model, spec: OpSpec, node: ir.Node, opset: int) -> None:
    if node.op_identifier() in model.functions:
        return
    proto = spec.function(
        _types(node), _attributes(spec, node), opset=opset, overload=node.overload
    )
    function = ir.serde.deserialize_function(proto)
    model.functions[function.identifier()] = function


def _types(node: ir.Node) -> TensorTypes:
    return [None if value is None else _type(value) for value in node.inputs]


def _type(value: ir.Value) -> TensorType:
    assert value.shape is not None, f"{value.name} has no shape"
    assert value.dtype is not None, f"{value.name} has no dtype"
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return TensorType(str(value.dtype.numpy()), tuple(dims))


def _attributes(spec: OpSpec, node: ir.Node) -> Attributes:
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    return spec.complete({name: given[name] for name in given if name not in PLUGIN_ATTRIBUTES})

"""A model of one node: the smallest thing that a runtime can run an op in."""

from __future__ import annotations

import onnx

from moh_deploy.ops import OPS
from moh_deploy.ops.onnx_schema import make_node, to_type_proto
from moh_deploy.ops.spec import Attributes, TensorType, TensorTypes

_IR_VERSION = 10


def single_node_model(
    op_name: str,
    inputs: TensorTypes,
    attributes: Attributes,
    *,
    opset: int = 18,
    function: onnx.FunctionProto | None = None,
) -> onnx.ModelProto:
    """Build a model that runs one op on the graph's inputs.

    Args:
        inputs: Types of the inputs, None for an absent one. Graph inputs are named as the op's.
        function: The function body; by default the one that the op's spec builds for this node.
    """
    spec = OPS[op_name]
    attributes = spec.complete(attributes)
    named = list(zip((i.name for i in spec.inputs), inputs, strict=False))
    types = spec.shape_rule(inputs, attributes)
    node = make_node(
        op_name,
        [name if type_ is not None else "" for name, type_ in named],
        [output.name for output in spec.outputs],
        **attributes,
    )
    graph = onnx.helper.make_graph(
        [node],
        op_name,
        [_value_info(name, type_) for name, type_ in named if type_ is not None],
        [_value_info(o.name, type_) for o, type_ in zip(spec.outputs, types, strict=True)],
    )
    body = function or spec.function(inputs, attributes, opset=opset)
    opsets = [
        onnx.helper.make_opsetid("", opset),
        onnx.helper.make_opsetid(spec.domain, spec.version),
        # Those that a body needs besides, too.
        *(opset for opset in body.opset_import if opset.domain not in ("", spec.domain)),
    ]
    return onnx.helper.make_model(
        graph, opset_imports=opsets, functions=[body], ir_version=_IR_VERSION
    )


def _value_info(name: str, type_: TensorType) -> onnx.ValueInfoProto:
    return onnx.helper.make_value_info(name, to_type_proto(type_))

"""Let a node list the inputs that it has, and say in an attribute which they are.

TensorRT's parser refuses a node of a plugin that leaves out an input in between.
"""

from __future__ import annotations

import onnx_ir as ir

from moh_deploy.ops import is_moh_op
from moh_deploy.ops.plugin_support import PLUGINS, PRESENT_INPUTS


def close_input_gaps(model: ir.Model) -> tuple[str, ...]:
    """Close the gaps of every node that has a plugin and leaves out an input in between.

    The function bodies of the ops of such nodes are removed: they have parameters that the nodes no
    longer give. What is left is for TensorRT only.

    Returns:
        Names of the nodes that were changed.
    """
    changed = [node for node in model.graph.all_nodes() if _has_gap(node)]
    # A gap is an input of None; at the end of a node ONNX just leaves inputs out.
    for node in changed:
        _close(node)
        model.functions.pop(node.op_identifier(), None)
    return tuple(node.name or "" for node in changed)


def _has_gap(node: ir.Node) -> bool:
    has_plugin = is_moh_op(node.domain, node.op_type) and node.op_type in PLUGINS
    return has_plugin and None in node.inputs


def _close(node: ir.Node) -> None:
    # [q, k, -, gates] -> [q, k, gates], with the bits 0b1011 to tell which they are.
    present = [(place, value) for place, value in enumerate(node.inputs) if value is not None]
    for place, (_, value) in enumerate(present):
        node.replace_input_with(place, value)
    node.resize_inputs(len(present))
    # Bit i: input i of the op is there.
    bits = sum(1 << place for place, _ in present)
    node.attributes.add(ir.AttrInt64(PRESENT_INPUTS.name, bits))

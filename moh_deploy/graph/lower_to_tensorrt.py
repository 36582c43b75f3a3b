"""Turn a package's model into what TensorRT's parser and the plugins take.

In this order, on a model whose layers have one choice each (`choose_layers` with `at_sizes`: there
is no `If` by size left):

inline_functions    every node of ours that is to be no plugin becomes operators. The parser finds
                    functions by name alone, without domain: it would take the node of a dense
                    layer for a plugin, and one body for another; and up to TensorRT 10.6 it
                    prefers a function to a plugin. So no function is left
close_input_gaps    the parser refuses nodes that leave out an input in between
tell_fields         the share of open gates in the recorded runs: tactics are measured with it. And
                    defaults, or the parser warns of each

Not needed, and so not done: int64 indices (TensorRT has them from 10.0 on); constant top-k (an
attribute of MoHRouter, a constant in its body); float32 `Attention` (the network makes it
decomposable: `backends/trt/network.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from moh_deploy.graph.close_input_gaps import close_input_gaps
from moh_deploy.ops.domains import KERNEL_DOMAIN, base_domain
from moh_deploy.ops.plugin_support import OPEN_SHARE, PLUGINS, PRESENT_INPUTS

_NO_BODY = "plugin"


def lower_to_tensorrt(
    model: ir.Model, *, plugin_nodes: Collection[str], open_shares: Mapping[str, float]
) -> None:
    """Lower a package's model in place.

    Args:
        model: The model.
        plugin_nodes: Names of the nodes that are to be plugins.
        open_shares: Name of an attention node to its share of open gates, where that is known.
    """
    inline_functions(model, but=plugin_nodes)
    close_input_gaps(model)
    tell_fields(model, open_shares)


def nodes_with_plugins(model: ir.Model) -> tuple[ir.Node, ...]:
    """Return the nodes that are plugins if the layers' choices are followed."""
    return tuple(
        node
        for node in model.graph
        if base_domain(node.domain) == KERNEL_DOMAIN and node.op_type in PLUGINS
    )


def inline_functions(model: ir.Model, *, but: Collection[str]) -> None:
    """Replace every node that has a body by it, but for those of these names."""
    kept = [node for node in model.graph if node.name in but]
    for node in kept:
        node.overload = _NO_BODY
    InlinePass()(model)
    model.functions.clear()
    for node in kept:
        node.overload = ""


def tell_fields(model: ir.Model, open_shares: Mapping[str, float]) -> None:
    """Write onto the nodes of plugins what only plugins have."""
    for node in nodes_with_plugins(model):
        share = open_shares.get(node.name or "")
        if share is not None and OPEN_SHARE in PLUGINS[node.op_type].fields:
            node.attributes.add(ir.AttrFloat32(OPEN_SHARE.name, share))
        if PRESENT_INPUTS.name not in node.attributes:
            node.attributes.add(ir.AttrInt64(PRESENT_INPUTS.name, 0))

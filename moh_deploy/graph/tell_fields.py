"""Write onto the nodes of TensorRT's plugins what only plugins have."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.ops.plugin_support import OPEN_SHARE, PLUGINS, PORTABLE, PRESENT_INPUTS


def nodes_with_plugins(model: ir.Model) -> tuple[ir.Node, ...]:
    """Return the nodes that are plugins if the layers' choices are followed."""
    return tuple(
        node
        for node in model.graph
        if base_domain(node.domain) == KERNEL_DOMAIN and node.op_type in PLUGINS
    )


def tell_fields(
    model: ir.Model, open_shares: Mapping[str, float], *, is_portable: bool = False
) -> bool:
    """Tell plugins the share of open gates in the recorded runs, which tactics are measured with,
    and give fields defaults: the parser warns of each that is missing.

    Args:
        open_shares: Name of an attention node to its share of open gates, where that is known.
        is_portable: The engine may run on other GPUs than the one that it is built on.
    """
    before = [dict(node.attributes) for node in model.graph]
    for node in nodes_with_plugins(model):
        share = open_shares.get(node.name or "")
        if share is not None and OPEN_SHARE in PLUGINS[node.op_type].fields:
            node.attributes.add(ir.AttrFloat32(OPEN_SHARE.name, share))
        if is_portable and PORTABLE in PLUGINS[node.op_type].fields:
            node.attributes.add(ir.AttrInt64(PORTABLE.name, 1))
        if PRESENT_INPUTS.name not in node.attributes:
            node.attributes.add(ir.AttrInt64(PRESENT_INPUTS.name, 0))
    return [dict(node.attributes) for node in model.graph] != before

"""A variant of a model whose routers choose every routed head: nothing is skipped."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from moh_deploy.graph.router_nodes import is_router, router_nodes
from moh_deploy.graph.switches import all_nodes
from moh_deploy.package.manifest import LayerInfo


def open_all_heads(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> bool:
    """Let every MoHRouter of the layers choose all heads that it routes.

    Args:
        graph: Changed in place.
        layers: Those of the package; `why_not_open` has nothing to say against them.
    """
    # Gates keep their weights, whose mean is 1 by the definition of MoHRouter, whatever the number
    # of heads that are chosen.
    routed = {
        name: layer.num_heads - (layer.num_shared_heads or 0)
        for name, layer in zip(router_nodes(graph, tuple(layers)), layers, strict=True)
    }
    changed = False
    for node in all_nodes(graph):
        if not is_router(node) or node.name not in routed:
            continue
        for attribute in node.attribute:
            if attribute.name == "top_k":
                attribute.CopyFrom(helper.make_attribute("top_k", routed[node.name]))
                changed = True
    return changed


def why_not_open(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> str | None:
    """Return why heads cannot be opened by the routers' attribute; None if they can."""
    found = zip(router_nodes(graph, tuple(layers)), layers, strict=True)
    plain = [layer.path for name, layer in found if name is None]
    if not layers:
        return "it has no MoH layer"
    if plain:
        named = ", ".join(f"'{path}'" for path in plain)
        return f"the router of {named} is of plain operators, so no attribute says how many"
    return None

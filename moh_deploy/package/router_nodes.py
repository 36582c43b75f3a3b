"""Find the MoHRouter node that makes a layer's gates."""

from __future__ import annotations

import onnx

from moh_deploy.domains import KERNEL_DOMAIN, base_domain
from moh_deploy.package.manifest import LayerInfo


def router_nodes(graph: onnx.GraphProto, layers: tuple[LayerInfo, ...]) -> tuple[str | None, ...]:
    """Return the name of each layer's MoHRouter node; None for a router of plain operators."""
    makers = {name: node for node in graph.node for name in node.output}
    return tuple(
        _router_of(layer.gates, makers) if layer.router_replaced else None for layer in layers
    )


def _router_of(value: str, makers: dict[str, onnx.NodeProto]) -> str | None:
    """Follow the data (a node's first input) from the gates to the node that chose the heads."""
    while value in makers:
        node = makers[value]
        if (base_domain(node.domain), node.op_type) == (KERNEL_DOMAIN, "MoHRouter"):
            return node.name
        value = node.input[0] if node.input else ""
    return None

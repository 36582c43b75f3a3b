"""A variant of a model without routers: what they make is fed, and all that only made it is gone.

It is fed where the router made it, behind the views of the recorded form, so that nothing of the
router is needed to know a shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from moh_deploy.graph.forced_gates import add_input, gate_views, unforceable_layers
from moh_deploy.graph.keep_only import drop_unread
from moh_deploy.package.layer_info import LayerInfo
from moh_deploy.package.switches import all_nodes
from moh_deploy.system.npz import Array


def routed_values(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> list[str]:
    """Return the names of what the routers of the layers make, each once."""
    computed = {name for node in graph.node for name in node.output}
    # In front of the views: behind them the shape would have to be known from the router.
    names = [_behind_views(graph, layer) for layer in layers]
    return list(dict.fromkeys(name for name in names if name in computed))


def fixed_input(routed: str) -> str:
    """Return the name of the input in place of what a router makes."""
    return f"{routed}.fixed"


def fix_routing(graph: onnx.GraphProto, routed: Mapping[str, Array]) -> bool:
    """Make inputs of what routers make, and drop the nodes that nothing reads any more.

    Args:
        graph: Changed in place.
        routed: Name of what a router makes to an array of the same dtype and rank.
    """
    # Nodes in branches read values of the main graph by name: they have to read the input as well.
    for node in all_nodes(graph):
        for index, name in enumerate(node.input):
            if name in routed:
                node.input[index] = fixed_input(name)
    for name, array in routed.items():
        add_input(graph, fixed_input(name), array.dtype, rank=array.ndim)
    return drop_unread(graph) or bool(routed)


def why_not_fixed(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> str | None:
    """Return why a model cannot run without its routers; None if it can.

    Args:
        graph: Not to be used afterwards.
    """
    routed = routed_values(graph, layers)
    if not routed:
        return "no layer computes its gates"
    paths = unforceable_layers(graph, layers)
    if paths:
        named = ", ".join(f"'{path}'" for path in paths)
        return f"attention does not compute with the recorded gates in {named}"
    # Tried out: what still makes a router's result afterwards makes something else of the model.
    fix_routing(graph, dict.fromkeys(routed, np.zeros(())))
    kept = [name for node in graph.node for name in node.output if name in routed]
    if kept:
        return f"the model's outputs are made of what routers compute, too: {', '.join(kept)}"
    return None


def _behind_views(graph: onnx.GraphProto, layer: LayerInfo) -> str:
    views = gate_views(graph, layer)
    return views[-1].input[0] if views else layer.gates

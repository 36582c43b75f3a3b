"""Make inputs of the logits that routers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from moh_deploy.graph.fed_input import add_input
from moh_deploy.graph.router_logits import PORTS, RouterLogits


def force_logits(
    graph: onnx.GraphProto, routers: Sequence[RouterLogits], dtypes: Mapping[str, np.dtype[Any]]
) -> bool:
    """Let routers read inputs `forced(port)` in place of the values that they read.

    Args:
        graph: Changed in place.
        routers: The routers; layers that share one have the same inputs.
        dtypes: Name of each value in `logits` to its dtype.
    """
    nodes = {node.name: node for node in graph.node}
    for router in {router.node: router for router in routers}.values():
        for port, value in router.logits.items():
            nodes[router.node].input[PORTS.index(port)] = router.forced(port)
            add_input(graph, router.forced(port), dtypes[value])
    return any(router.logits for router in routers)

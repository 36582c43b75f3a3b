"""Find the values that the logits of routers are computed from.

Between a projection and a MoHRouter stand slices, a bias, a temperature, a sigmoid, or the norm of
each head. What a projection made, or any other contraction, is where values can be put so that all
of these work on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from moh_deploy.graph.router_logits import RouterLogits
from moh_deploy.package.router_nodes import SIZES, computed_from, ends_the_way, makers_of
from moh_deploy.package.switches import reads

# Element by element in one rounding, or none: equal numbers stay equal.
_EXACT = (
    *("Add", "Cast", "Concat", "Div", "Expand", "Flatten", "Gather", "Identity", "Mul", "Neg"),
    *("Reshape", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where", *SIZES),
)


def logit_sources(graph: onnx.GraphProto, router: RouterLogits) -> tuple[str, ...]:
    """Return what the logits of a router are computed from: results of contractions and of custom
    operators, and inputs of the model."""
    makers = makers_of(graph)
    given = {value.name for value in graph.input}
    found: dict[str, None] = {}
    for port in router.logits.values():
        # An input of the model is a source where nothing else makes what is read.
        read = {port}
        for name, node in computed_from(port, makers):
            if ends_the_way(node):
                found[name] = None
            elif node.op_type not in SIZES:
                read.update(reads(node))
        # Sorted, so that reports do not hang on the order of a set.
        found |= dict.fromkeys(sorted(read & given))
    return tuple(found)


def front_values(graph: onnx.GraphProto, router: RouterLogits, port: str) -> tuple[str, ...]:
    """Return what lies between the sources of the logits and a port that reads them, and what the
    port reads, the nearest first."""
    found = computed_from(router.logits[port], makers_of(graph))
    return tuple(
        name for name, node in found if not ends_the_way(node) and node.op_type not in SIZES
    )


def is_exact(
    graph: onnx.GraphProto, router: RouterLogits, port: str, values: Sequence[str]
) -> bool:
    """Tell whether equal numbers, put in place of some values, reach a port of a router as equal
    logits, to the last bit.

    Other operators are computed in vectors, whose last elements may be rounded in another way.
    """
    makers = makers_of(graph)
    # The walk ends at the values: what makes them does not matter, as they are replaced.
    behind = {name: node for name, node in makers.items() if name not in values}
    return all(
        node.op_type in _EXACT or ends_the_way(node) or not node.input
        for _, node in computed_from(router.logits[port], behind)
    )

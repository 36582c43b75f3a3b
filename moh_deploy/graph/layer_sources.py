"""Find which layers and inputs each layer of a model is computed from.

Read for a model to which the gates of every layer are fed: what only a router reads does not reach
its attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from moh_deploy.graph.forced_gates import gate_views
from moh_deploy.graph.router_logits import attention_values
from moh_deploy.package.layer_info import LayerInfo
from moh_deploy.package.switches import reads

LayerSource = int | str
"""Number of a layer in the manifest's order, whose attention is read, or name of an input."""


@dataclass(frozen=True)
class LayerSources:
    """The layers and inputs that one layer is computed from.

    Attributes:
        attention: What its attention is computed from.
        router: What its gates are computed from.
    """

    attention: frozenset[LayerSource]
    router: frozenset[LayerSource]


NO_SOURCES = LayerSources(frozenset(), frozenset())


def layer_sources(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> tuple[LayerSources, ...]:
    """Return the sources of each layer.

    Args:
        graph: Its nodes are sorted, as those of a valid model are.
    """
    # One pass in execution order. `known` is what readers of a value depend on: nothing for gates,
    # which are fed; the layer itself, with all before it, for what an attention makes. `before` is
    # what the value itself was computed from.
    values = attention_values(graph, layers)
    attention = {value: i for i, value in enumerate(values)}
    # Fed: what reads them depends on no router, and on nothing before one.
    names = [_gate_names(graph, layer) for layer in layers]
    gates = {name for chain in names for name in chain}
    weights = {tensor.name for tensor in graph.initializer}
    known: dict[str, frozenset[LayerSource]] = {
        value.name: frozenset([value.name]) for value in graph.input if value.name not in weights
    }
    before: dict[str, frozenset[LayerSource]] = {}
    for node in graph.node:
        # Forward through sorted nodes: the sources of all that a node reads.
        found = frozenset[LayerSource]().union(*(known.get(name, _NONE) for name in reads(node)))
        for name in node.output:
            # A layer's own sources are those of its value before it counts as a source itself.
            before[name] = found
            if name in gates:
                known[name] = _NONE
            elif name in attention:
                known[name] = found | {attention[name]}
            else:
                known[name] = found
    return tuple(
        LayerSources(
            before.get(value or "", _NONE),
            # The last name is what the router makes, in front of all views.
            before.get(chain[-1], _NONE),
        )
        for value, chain in zip(values, names, strict=True)
    )


_NONE: frozenset[LayerSource] = frozenset()


def _gate_names(graph: onnx.GraphProto, layer: LayerInfo) -> list[str]:
    """Return the names of a layer's gates, and of what they are views of, down to the router's."""
    return [layer.gates, *(view.input[0] for view in gate_views(graph, layer))]

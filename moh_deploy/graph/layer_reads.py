"""Find where the routers of a model read their logits.

A layer whose router is of plain operators has no such place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from moh_deploy.graph.forced_gates import GATES_INPUT, add_input, gate_views, routed_value
from moh_deploy.ops import MOH_ROUTER
from moh_deploy.ops.routers import WEIGHING, RouterForm, form_named
from moh_deploy.package import graph_nodes
from moh_deploy.package.interface import LayerInfo


@dataclass(frozen=True)
class RouterLogits:
    """The MoHRouter of one layer: its logits, gates and attributes, and who reads its gates."""

    path: str  # the layer
    node: str  # name of the MoHRouter node
    # Port to the value that it reads there, for the ports that are present.
    logits: Mapping[str, str]
    gates: str  # the value that it makes, [B, S, H]
    attributes: Mapping[str, int | str]  # those of the node
    # The value that the layer's attention makes; None where it was not replaced.
    attention: str | None
    in_order: bool  # the recorded gates hold the tokens in the order in which the router has them
    form: RouterForm  # what is known of routers of its kind

    def forced(self, port: str) -> str:
        """Return the name of the input that holds the logits to be used."""
        return f"{self.node}.{port}.forced"


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


PORTS = tuple(port.name for port in MOH_ROUTER.inputs)
"""The inputs of MoHRouter, in their order."""

# A Transpose may move tokens; these may not.
_KEEP_ORDER = WEIGHING | {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


def router_logits(
    graph: onnx.GraphProto, layers: tuple[LayerInfo, ...]
) -> tuple[RouterLogits | None, ...]:
    """Return where each layer's router reads its logits; None for one of plain operators."""
    # Of the main graph: routers stand in no branch.
    nodes = {node.name: node for node in graph.node if node.name}
    makers, attentions = graph_nodes.makers_of(graph.node), attention_values(graph, layers)
    found: list[RouterLogits | None] = []
    for layer, name, made in zip(
        layers, graph_nodes.router_nodes(graph, layers), attentions, strict=True
    ):
        if name is None:
            found.append(None)
            continue
        router, gates = nodes[name], layer.gates
        # Weighing operators have the gates as their first input; none of these moves a token.
        while gates in makers and makers[gates].op_type in _KEEP_ORDER:
            gates = makers[gates].input[0]
        logits = RouterLogits(
            path=layer.path,
            node=name,
            # An optional input that is left out has an empty name.
            logits={port: value for port, value in zip(PORTS, router.input, strict=False) if value},
            gates=router.output[0],
            attributes={attribute.name: _value(attribute) for attribute in router.attribute},
            attention=None if layer.node is None else made,
            in_order=gates == router.output[0],
            form=form_named(layer.router),
        )
        found.append(logits)
    return tuple(found)


def attention_values(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> tuple[str | None, ...]:
    """Return the name of what each layer's attention computes, gates included; None without one.

    It is [B, S, heads * value size], or [B, heads, S, value size] where the operator is given that.
    """
    results = _results(graph)
    return tuple(
        layer.attention if layer.node is None else results.get(layer.node) for layer in layers
    )


def _value(attribute: onnx.AttributeProto) -> int | str:
    value: int | bytes = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _results(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the main graph's name of the first result of each node, those in branches included."""
    results: dict[str, str] = {}
    for node in graph.node:
        if node.output:
            results.setdefault(node.name, node.output[0])
        for attribute in node.attribute:
            if attribute.HasField("g"):
                # Output i of an If is output i of either branch.
                returned = {value.name: i for i, value in enumerate(attribute.g.output)}
                for inner in graph_nodes.all_nodes(attribute.g):
                    if inner.output and inner.output[0] in returned:
                        results.setdefault(inner.name, node.output[returned[inner.output[0]]])
    return results


# Find where the nodes of a layer read its gates, and what lies between them and the router.

RECORDED_GATES = "recorded gates"


@dataclass(frozen=True)
class GateRead:
    """One value that holds a layer's gates, and the operators between the MoHRouter and it."""

    # What reads it: the operator of a node of the layer, or `recorded gates` for the value that the
    # manifest names.
    reader: str
    value: str  # the value
    start: str  # the value that the MoHRouter makes
    # Each value between the two to the node that makes it, the last first.
    way: Mapping[str, onnx.NodeProto]
    constants: frozenset[str]  # names of the constants of the model

    @property
    def values(self) -> list[str]:
        """Names of what is on the way, and of all that its operators read."""
        read = [name for node in self.way.values() for name in node.input if name]
        return list(dict.fromkeys([self.value, self.start, *self.way, *read]))


def gate_reads(graph: onnx.GraphProto, layer: LayerInfo, start: str) -> tuple[GateRead, ...]:
    """Return the values that the nodes of a layer read as its gates, each once.

    Args:
        start: The value that the layer's MoHRouter makes.
    """
    makers = graph_nodes.makers_of(graph.node)
    # A constant that weighs gates may tell heads apart; see `followed_gates`.
    constants = frozenset(
        [weight.name for weight in graph.initializer]
        + [name for name, node in makers.items() if node.op_type == "Constant"]
    )
    nodes = {node.name: node for node in graph_nodes.all_nodes(graph) if node.name}
    readers: dict[str, str] = {}
    for name in (layer.node, layer.query_projection, layer.output_projection):
        # A layer that is switched by size has two nodes, which must read the same gates.
        for known in () if name is None else (name, graph_nodes.dense_twin(name)):
            if (node := nodes.get(known)) is not None:
                readers.setdefault(node.input[GATES_INPUT[node.op_type]], node.op_type)
    # What the nodes read comes first; the recorded gates are often the same value.
    readers.setdefault(layer.gates, RECORDED_GATES)
    return tuple(
        GateRead(reader, value, start, _between(makers, value, start), constants)
        for value, reader in readers.items()
    )


def _between(
    makers: Mapping[str, onnx.NodeProto], value: str, start: str
) -> dict[str, onnx.NodeProto]:
    """Return what depends on `start` among all that `value` is computed from."""
    # Backwards from the value to all that it is computed from, then forward from the router to what
    # depends on it: the way is what is in both.
    found = {
        name: node
        for name, node in graph_nodes.computed_from(value, makers)
        # A path through a size carries no gate.
        if not graph_nodes.is_router(node) and node.op_type not in graph_nodes.SIZES
    }
    # Forward from the router, among what leads to the value: until nothing is added.
    on_the_way = {start}
    while True:
        more = {
            name
            for name, node in found.items()
            if name not in on_the_way and on_the_way.intersection(graph_nodes.reads(node))
        }
        if not more:
            return {name: node for name, node in found.items() if name in on_the_way}
        on_the_way |= more


# Find which layers and inputs each layer of a model is computed from.
#
# Read for a model to which the gates of every layer are fed: what only a router reads does not
# reach its attention.

LayerSource = int | str
"""Number of a layer in the manifest's order, whose attention is read, or name of an input."""


@dataclass(frozen=True)
class LayerSources:
    """The layers and inputs that one layer is computed from."""

    attention: frozenset[LayerSource]  # what its attention is computed from
    router: frozenset[LayerSource]  # what its gates are computed from


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
    # Fed: what reads them, and their views, depends on no router, and on nothing before one.
    routed = [routed_value(graph, layer) for layer in layers]
    views = [view for layer in layers for view in gate_views(graph, layer)]
    gates = {*routed, *(name for view in views for name in view.output)}
    weights = {tensor.name for tensor in graph.initializer}
    known: dict[str, frozenset[LayerSource]] = {
        value.name: frozenset([value.name]) for value in graph.input if value.name not in weights
    }
    before: dict[str, frozenset[LayerSource]] = {}
    for node in graph.node:
        # Forward through sorted nodes: the sources of all that a node reads.
        found = frozenset[LayerSource]().union(
            *(known.get(name, _NONE) for name in graph_nodes.reads(node))
        )
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
        LayerSources(before.get(value or "", _NONE), before.get(router, _NONE))
        for value, router in zip(values, routed, strict=True)
    )


_NONE: frozenset[LayerSource] = frozenset()

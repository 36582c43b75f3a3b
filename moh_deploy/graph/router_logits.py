"""Find where the routers of a model read their logits.

A layer whose router is of plain operators has no such place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from moh_deploy.graph.forced_gates import add_input
from moh_deploy.ops import MOH_ROUTER
from moh_deploy.ops.routers import WEIGHING, RouterForm, form_named
from moh_deploy.package.layer_info import LayerInfo
from moh_deploy.package.router_nodes import router_nodes
from moh_deploy.package.switches import all_nodes

# Make inputs of the logits that routers read.


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


@dataclass(frozen=True)
class RouterLogits:
    """The MoHRouter of one layer: its logits, gates and attributes, and who reads its gates.

    Attributes:
        path: The layer.
        node: Name of the MoHRouter node.
        logits: Port to the value that it reads there, for the ports that are present.
        gates: The value that it makes, [B, S, H].
        attributes: Those of the node.
        attention: The value that the layer's attention makes; None where it was not replaced.
        in_order: The recorded gates hold the tokens in the order in which the router has them.
        form: What is known of routers of its kind.
    """

    path: str
    node: str
    logits: Mapping[str, str]
    gates: str
    attributes: Mapping[str, int | str]
    attention: str | None
    in_order: bool
    form: RouterForm

    def forced(self, port: str) -> str:
        """Return the name of the input that holds the logits to be used."""
        return f"{self.node}.{port}.forced"


def router_logits(
    graph: onnx.GraphProto, layers: tuple[LayerInfo, ...]
) -> tuple[RouterLogits | None, ...]:
    """Return where each layer's router reads its logits; None for one of plain operators."""
    # Of the main graph: routers stand in no branch.
    nodes = {node.name: node for node in graph.node if node.name}
    routers = router_nodes(graph, layers)
    makers = {name: node for node in graph.node for name in node.output}
    results = _results(graph)
    return tuple(
        None if name is None else _of_layer(layer, nodes[name], makers, results)
        for layer, name in zip(layers, routers, strict=True)
    )


def attention_values(graph: onnx.GraphProto, layers: Sequence[LayerInfo]) -> tuple[str | None, ...]:
    """Return the name of what each layer's attention computes, gates included; None without one.

    It is [B, S, heads * value size], or [B, heads, S, value size] where the operator is given that.
    """
    results = _results(graph)
    return tuple(
        layer.attention if layer.node is None else results.get(layer.node) for layer in layers
    )


def _of_layer(
    layer: LayerInfo,
    router: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    results: Mapping[str, str],
) -> RouterLogits:
    return RouterLogits(
        path=layer.path,
        node=router.name,
        # An optional input that is left out has an empty name.
        logits={port: name for port, name in zip(PORTS, router.input, strict=False) if name},
        gates=router.output[0],
        attributes={attribute.name: _value(attribute) for attribute in router.attribute},
        attention=None if layer.node is None else results.get(layer.node),
        in_order=_in_order(makers, layer.gates, router.output[0]),
        form=form_named(layer.router),
    )


def _in_order(makers: Mapping[str, onnx.NodeProto], gates: str, made: str) -> bool:
    """Tell whether nothing on the way from what a router made to the gates moves a token."""
    # Weighing operators have the gates as their first input; none of these moves a token.
    # From the recorded gates backwards, as long as operators keep the tokens in place.
    while gates != made and gates in makers and makers[gates].op_type in _KEEP_ORDER:
        gates = makers[gates].input[0]
    return gates == made


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
                for inner in all_nodes(attribute.g):
                    if inner.output and inner.output[0] in returned:
                        results.setdefault(inner.name, node.output[returned[inner.output[0]]])
    return results

"""Find where the nodes of a layer read its gates, and what lies between them and the router."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from moh_deploy.graph.forced_gates import GATES_INPUT
from moh_deploy.package.layer_info import LayerInfo
from moh_deploy.package.router_nodes import SIZES, computed_from, is_router, makers_of
from moh_deploy.package.switches import all_nodes, dense_twin, reads

RECORDED_GATES = "recorded gates"


@dataclass(frozen=True)
class GateRead:
    """One value that holds a layer's gates, and the operators between the MoHRouter and it.

    Attributes:
        reader: What reads it: the operator of a node of the layer, or `recorded gates` for the
            value that the manifest names.
        value: The value.
        start: The value that the MoHRouter makes.
        way: Each value between the two to the node that makes it, the last first.
        constants: Names of the constants of the model.
    """

    reader: str
    value: str
    start: str
    way: Mapping[str, onnx.NodeProto]
    constants: frozenset[str]

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
    makers = makers_of(graph)
    # A constant that weighs gates may tell heads apart; see `followed_gates`.
    constants = frozenset(
        [weight.name for weight in graph.initializer]
        + [name for name, node in makers.items() if node.op_type == "Constant"]
    )
    named: dict[str, str] = {}
    # What the nodes read comes first; the recorded gates are often the same value.
    for reader, value in (*_readers(graph, layer), (RECORDED_GATES, layer.gates)):
        named.setdefault(value, reader)
    return tuple(
        GateRead(reader, value, start, _between(makers, value, start), constants)
        for value, reader in named.items()
    )


def _readers(graph: onnx.GraphProto, layer: LayerInfo) -> Iterator[tuple[str, str]]:
    nodes = {node.name: node for node in all_nodes(graph) if node.name}
    for name in (layer.node, layer.query_projection, layer.output_projection):
        # A layer that is switched by size has two nodes, which must read the same gates.
        for known in () if name is None else (name, dense_twin(name)):
            if known in nodes:
                node = nodes[known]
                yield node.op_type, node.input[GATES_INPUT[node.op_type]]


def _between(
    makers: Mapping[str, onnx.NodeProto], value: str, start: str
) -> dict[str, onnx.NodeProto]:
    """Return what depends on `start` among all that `value` is computed from."""
    # Backwards from the value to all that it is computed from, then forward from the router to what
    # depends on it: the way is what is in both.
    found = {
        name: node
        for name, node in computed_from(value, makers)
        # A path through a size carries no gate.
        if not is_router(node) and node.op_type not in SIZES
    }
    # Forward from the router, among what leads to the value: until nothing is added.
    on_the_way = {start}
    while True:
        more = {
            name
            for name, node in found.items()
            if name not in on_the_way and on_the_way.intersection(reads(node))
        }
        if not more:
            return {name: node for name, node in found.items() if name in on_the_way}
        on_the_way |= more

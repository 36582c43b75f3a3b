"""Place the nodes of a model: the module that each computes for, and the values it leads to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from moh_deploy.package import LayerInfo
from moh_deploy.package.switches import CONDITION_PREFIX, reads

Reached = frozenset[int]
"""Places of nodes in `ModelGraph.nodes`."""


@dataclass(frozen=True)
class NodePlace:
    """One node.

    Attributes:
        node: Its name; for a node without one, what it makes.
        op: Its operator.
        module: Path of the module that it computes for.
        value: Its first output.
    """

    node: str
    op: str
    module: str
    value: str

    def __str__(self) -> str:
        return f"{self.op} '{self.node}' in '{self.module}'"


@dataclass(frozen=True)
class ModelGraph:
    """A graph and the layers in it.

    Attributes:
        graph: Its nodes stand in an order in which they can run, but for those that feed gates,
            which come last.
        layers: Those of the package.
        written: The graph as the package has it, if gates are fed to this one: routers lead nowhere
            here, so this one does not tell whose they are.
    """

    graph: onnx.GraphProto
    layers: Sequence[LayerInfo] = ()
    written: ModelGraph | None = None

    @cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        return tuple(self.graph.node)

    @cached_property
    def makers(self) -> Mapping[str, int]:
        """Value to the place of the node that makes it."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    @property
    def own(self) -> int:
        """The number of nodes without those that feed gates."""
        # Nodes that feed gates come last, so the package's own are the first so many.
        return len(self.nodes if self.written is None else self.written.nodes)

    def place(self, index: int) -> NodePlace:
        """Return where one of the package's own nodes is."""
        if self.written is not None:
            return self.written.place(index)
        node = what_runs(self.nodes[index])
        value = next(name for name in self.nodes[index].output if name)
        return NodePlace(node.name or f"-> {value}", node.op_type, self._module(index), value)

    def before(self, *values: str) -> Reached:
        """Return the nodes that values are made of."""
        found: set[int] = set()
        waiting = [self.makers[name] for name in values if name in self.makers]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                # Including what the branches of an If read from outside.
                names = reads(self.nodes[index])
                waiting += [self.makers[name] for name in names if name in self.makers]
        return frozenset(found)

    def _module(self, index: int) -> str:
        node = what_runs(self.nodes[index])
        # A layer's node is known from the manifest, others by their names:
        # `blocks.0.attn.MatMul#2`.
        own = next(
            (layer.path for layer in self.layers if node.name and node.name == layer.node), None
        )
        named = re.fullmatch(rf"(?P<module>.+)\.{re.escape(node.op_type)}(#\d+)?", node.name)
        if own is None and named is not None:
            own = named["module"]
        return own or self._nearest_layer(index) or "model"

    def _nearest_layer(self, index: int) -> str | None:
        """Return the layer that a node without a telling name helps, or else that it is behind.

        What is before all of a layer's queries, keys and values belongs to the one before it.
        """
        behind = None
        for layer, anchor, inputs in self._anchors:
            if index in anchor:
                # Before queries, keys and values alike: the norm in front of the layer, or a block
                # before it.
                shared = all(index in group for group in inputs)
                return behind if shared and behind is not None else layer.path
            if self.makers.get(layer.gates) in self.before(*reads(self.nodes[index])):
                behind = layer.path
        return behind

    @cached_property
    def _anchors(self) -> list[tuple[LayerInfo, Reached, list[Reached]]]:
        found = []
        by_name = {node.name: node for node in self.nodes if node.name}
        for layer in self.layers:
            attention = by_name.get(layer.node or "")
            names = [layer.gates] if attention is None else list(attention.input)
            made = [] if attention is None else attention.output
            # Of an MoH attention node the first three inputs are queries, keys and values.
            inputs = [self.before(name) for name in names[:3]]
            found.append((layer, self.before(*names, *made), inputs))
        return found


def what_runs(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return the node of a layer for the `If` that chooses by size how it is run."""
    if node.op_type != "If" or not node.input[0].startswith(CONDITION_PREFIX):
        return node
    graphs = {attribute.name: attribute.g for attribute in node.attribute}
    # Both branches hold the layer; see `switch_by_size`.
    inner: onnx.NodeProto = graphs["else_branch"].node[0]
    return inner

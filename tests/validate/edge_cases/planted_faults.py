"""Faults for the graph of any package, which recorded inputs do not show.

They stand between a router and what reads its gates, and work at one size of the inputs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.graph.layer_reads import RECORDED_GATES, gate_reads, router_logits
from moh_deploy.package import LayerInfo, OnnxPackage, PackageWriter
from moh_deploy.package.graph_nodes import all_nodes, reads
from tests.true_manifest import finish_true

Nodes = list[onnx.NodeProto]


class Site:
    """A layer of a graph, and how nodes are put into it."""

    def __init__(self, graph: onnx.GraphProto, layer: LayerInfo) -> None:
        (router,) = router_logits(graph, (layer,))
        self.graph, self.router = graph, router
        self.gates = router.gates
        self.heads = layer.num_heads
        read = gate_reads(graph, layer, router.gates)
        self.read = next(item.value for item in read if item.reader != RECORDED_GATES)

    def under(self, value: str) -> tuple[str, str]:
        """Call a value something else where it is made: what it is called now, and what nodes have
        to make of it."""
        for node in self.graph.node:
            for at, name in enumerate(node.output):
                node.output[at] = "planted_under" if name == value else name
        return "planted_under", value

    def apart(self, value: str) -> tuple[str, str]:
        """Let all that reads a value read something else: the value, and what nodes have to make
        of it."""
        for node in all_nodes(self.graph):
            for at, name in enumerate(node.input):
                node.input[at] = "planted" if name == value else name
        return value, "planted"

    def insert(self, *nodes: onnx.NodeProto) -> None:
        """Put nodes behind all that they read."""
        read = {name for node in nodes for name in reads(node)}
        makers = {name: at for at, node in enumerate(self.graph.node) for name in node.output}
        behind = max((makers[name] for name in read if name in makers), default=-1) + 1
        whole = [*self.graph.node[:behind], *nodes, *self.graph.node[behind:]]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in whole]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def constant(self, name: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def size(self, axis: int, size: int) -> Nodes:
        """`planted_size`: an axis of the first input is of this size."""
        at, wanted = self.constant("planted_axis", axis), self.constant("planted_wanted", size)
        return [
            _node("Shape", [self.graph.input[0].name], "planted_shape"),
            _node("Gather", ["planted_shape", at], "planted_found", axis=0),
            _node("Equal", ["planted_found", wanted], "planted_size"),
        ]

    def moved(self, value: str, order: Sequence[int], new: str) -> onnx.NodeProto:
        at = self.constant(f"{new}_order", list(order))
        return _node("Gather", [value, at], new, axis=-1)

    def without_head(self, value: str, head: int, new: str) -> onnx.NodeProto:
        mask = self.constant("planted_mask", np.arange(self.heads) != head, np.float32)
        return _node("Mul", [value, mask], new)

    def branch(self, condition: str, value: str, new: str) -> onnx.NodeProto:
        """An `If`: each head has the gate of the one before it, or its own."""
        order = self.constant("planted_roll", np.roll(np.arange(self.heads), 1))
        rolled = _node("Gather", [value, order], "planted_rolled", axis=-1)
        same = _node("Identity", [value], "planted_same")
        then_branch, else_branch = (
            helper.make_graph([node], name, [], [onnx.ValueInfoProto(name=node.output[0])])
            for name, node in (("then", rolled), ("otherwise", same))
        )
        return helper.make_node(
            "If", [condition], [new], then_branch=then_branch, else_branch=else_branch
        )


Fault = Callable[[Site], None]
SizeFault = Callable[[Site, int, int], None]


def branch_at_size(site: Site, axis: int, size: int) -> None:
    """At one size, each head has the gate of the one before it."""
    old, new = site.under(site.gates)
    site.insert(*site.size(axis, size), site.branch("planted_size", old, new))


def head_closed_for_attention_at_size(site: Site, axis: int, size: int) -> None:
    """At one size, attention reads 0 for the last head."""
    old, new = site.apart(site.read)
    closed = site.without_head(old, site.heads - 1, "planted_other")
    where = _node("Where", ["planted_size", "planted_other", old], new)
    site.insert(*site.size(axis, size), closed, where)


def factor_at_size(site: Site, axis: int, size: int) -> None:
    """At one size, what attention makes is a tenth too large."""
    assert site.router.attention is not None
    old, new = site.under(site.router.attention)
    tenth = site.constant("planted_tenth", 0.1, np.float32)
    one = site.constant("planted_one", 1.0, np.float32)
    site.insert(
        *site.size(axis, size),
        helper.make_node("Cast", ["planted_size"], ["planted_number"], to=TensorProto.FLOAT),
        _node("Mul", ["planted_number", tenth], "planted_more"),
        _node("Add", ["planted_more", one], "planted_factor"),
        _node("Mul", [old, "planted_factor"], new),
    )


AT_SIZE: Sequence[SizeFault] = (branch_at_size, head_closed_for_attention_at_size, factor_at_size)


def planted(
    package: OnnxPackage, output: Path, plant: Callable[[onnx.GraphProto], None]
) -> OnnxPackage:
    """Write the package again with another graph, and right digests."""
    model = onnx.load(package.model_path)
    plant(model.graph)
    with PackageWriter(output) as writer:
        onnx.save(model, writer.path("model.onnx"))
        return finish_true(writer, package.manifest, package.vectors, package.corpus)


def in_layer(layer: LayerInfo, fault: Fault) -> Callable[[onnx.GraphProto], None]:
    """Return a fault in one layer."""
    return lambda graph: fault(Site(graph, layer))


def at_size(
    layer: LayerInfo, fault: SizeFault, axis: int, size: int
) -> Callable[[onnx.GraphProto], None]:
    """Return a fault in one layer where an axis of the first input is of a size."""
    return lambda graph: fault(Site(graph, layer), axis, size)


def _node(op: str, inputs: Sequence[str], output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], **attributes)

"""Faults for the graph of any package, which recorded inputs do not show.

They stand between what makes logits and what reads gates, and work where scores tie, or at one size
of the inputs.
"""

from __future__ import annotations

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
        assert router is not None
        self.graph, self.router = graph, router
        self.logits, self.gates = router.logits["routed_logits"], router.gates
        self.heads = layer.num_heads
        self.shared = int(router.attributes["num_shared_heads"])
        self.top_k = int(router.attributes["top_k"])
        read = gate_reads(graph, layer, router.gates)
        self.read = next(one.value for one in read if one.reader != RECORDED_GATES)

    @property
    def routed(self) -> int:
        return self.heads - self.shared

    @property
    def heads_turned(self) -> list[int]:
        """Routed heads from the last to the first, behind the shared ones."""
        return [*range(self.shared), *range(self.shared, self.heads)[::-1]]

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

    def tie(self, logits: str) -> Nodes:
        """`planted_tie` [B, S, 1]: the last chosen head and the first unchosen one are equal."""
        best = self.constant("planted_k", [self.top_k + 1])
        last = self.constant("planted_last_place", [self.top_k - 1])
        first = self.constant("planted_first_place", [self.top_k])
        return [
            _node("TopK", [logits, best], "planted_best", "planted_ranks"),
            _node("Gather", ["planted_best", last], "planted_last", axis=-1),
            _node("Gather", ["planted_best", first], "planted_first", axis=-1),
            _node("Equal", ["planted_last", "planted_first"], "planted_tie"),
        ]

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


def higher_index_by_epsilon(site: Site) -> None:
    """The logits of later heads are a little larger."""
    old, new = site.under(site.logits)
    tiny = site.constant("planted_tiny", 1e-6 * np.arange(site.routed), np.float32)
    site.insert(_node("Add", [old, tiny], new))


def higher_index_by_a_hair(site: Site) -> None:
    """The logits of later heads are larger by a step of float32."""
    old, new = site.under(site.logits)
    tiny = site.constant("planted_tiny", 1 + 2.0**-23 * np.arange(site.routed), np.float32)
    site.insert(_node("Mul", [old, tiny], new))


def turned_logits_at_ties(site: Site) -> None:
    """Where scores tie, the router reads them from the last head to the first."""
    old, new = site.under(site.logits)
    turned = site.moved(old, range(site.routed)[::-1], "planted_turned")
    where = _node("Where", ["planted_tie", "planted_turned", old], new)
    site.insert(*site.tie(old), turned, where)


def turned_before_and_back_behind(site: Site) -> None:
    """The router sees heads backwards, and its gates are turned back: ties alone tell."""
    made, gates = site.under(site.gates)
    site.insert(site.moved(made, site.heads_turned, gates))
    turned = site.moved(site.logits, range(site.routed)[::-1], "planted_turned")
    site.insert(turned)
    (router,) = [node for node in site.graph.node if node.name == site.router.node]
    router.input[0] = "planted_turned"


def rolled_at_ties(site: Site) -> None:
    """Where scores tie, each head has the gate of the one before it."""
    old, new = site.under(site.gates)
    rolled = site.moved(old, np.roll(np.arange(site.heads), 1).tolist(), "planted_other")
    where = _node("Where", ["planted_tie", "planted_other", old], new)
    site.insert(*site.tie(site.logits), rolled, where)


def one_head_closed_at_ties(site: Site) -> None:
    """Where scores tie, the first routed head is closed."""
    old, new = site.under(site.gates)
    closed = site.without_head(old, site.shared, "planted_other")
    where = _node("Where", ["planted_tie", "planted_other", old], new)
    site.insert(*site.tie(site.logits), closed, where)


def factor_of_ties(site: Site) -> None:
    """The gates of the last head are multiplied by 1, or by 0.5 where scores tie."""
    old, new = site.under(site.gates)
    half = np.where(np.arange(site.heads) == site.heads - 1, 0.5, 1.0)
    halves = site.constant("planted_half", half, np.float32)
    ones = site.constant("planted_one", np.ones(site.heads), np.float32)
    factor = _node("Where", ["planted_tie", halves, ones], "planted_factor")
    site.insert(*site.tie(site.logits), factor, _node("Mul", [old, "planted_factor"], new))


def other_router_at_ties(site: Site) -> None:
    """Where scores tie, the gates are those of a router that prefers the higher index."""
    old, new = site.under(site.gates)
    (router,) = [node for node in site.graph.node if node.name == site.router.node]
    other = onnx.NodeProto.FromString(router.SerializeToString())
    other.input[0], other.output[0], other.name = "planted_turned", "planted_gates", "planted"
    site.insert(
        *site.tie(site.logits),
        site.moved(site.logits, range(site.routed)[::-1], "planted_turned"),
        other,
        site.moved("planted_gates", site.heads_turned, "planted_other"),
        _node("Where", ["planted_tie", "planted_other", old], new),
    )


def branch_at_ties(site: Site) -> None:
    """If any scores tie, every head has the gate of the one before it."""
    old, new = site.under(site.gates)
    site.insert(
        *site.tie(site.logits),
        helper.make_node("Cast", ["planted_tie"], ["planted_ties"], to=TensorProto.FLOAT),
        _node("ReduceMax", ["planted_ties"], "planted_most", keepdims=0),
        helper.make_node("Cast", ["planted_most"], ["planted_any"], to=TensorProto.BOOL),
        site.branch("planted_any", old, new),
    )


def swapped_for_attention_at_ties(site: Site) -> None:
    """If any scores tie, attention reads the gates of the last two heads swapped."""
    order = [*range(site.heads - 2), site.heads - 1, site.heads - 2]
    old, new = site.apart(site.read)
    site.insert(
        *site.tie(site.logits),
        helper.make_node("Cast", ["planted_tie"], ["planted_ties"], to=TensorProto.FLOAT),
        _node("ReduceMax", ["planted_ties"], "planted_most", keepdims=0),
        helper.make_node("Cast", ["planted_most"], ["planted_any"], to=TensorProto.BOOL),
        site.moved(old, order, "planted_other"),
        _node("Where", ["planted_any", "planted_other", old], new),
    )


def last_head_dropped_for_attention(site: Site) -> None:
    """Attention reads 0 for the last head, whatever its gate is."""
    old, new = site.apart(site.read)
    site.insert(site.without_head(old, site.heads - 1, new))


def heads_turned_for_attention(site: Site) -> None:
    """Attention reads the gates from the last head to the first."""
    old, new = site.apart(site.read)
    site.insert(site.moved(old, range(site.heads)[::-1], new))


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


BEFORE: Sequence[Fault] = (
    higher_index_by_epsilon,
    higher_index_by_a_hair,
    turned_logits_at_ties,
    turned_before_and_back_behind,
)
BEHIND: Sequence[Fault] = (
    rolled_at_ties,
    one_head_closed_at_ties,
    factor_of_ties,
    branch_at_ties,
    swapped_for_attention_at_ties,
)
ALWAYS: Sequence[Fault] = (last_head_dropped_for_attention, heads_turned_for_attention)
AT_SIZE: Sequence[SizeFault] = (
    branch_at_size,
    head_closed_for_attention_at_size,
    factor_at_size,
)


def idle_operators(site: Site) -> None:
    """Nothing is wrong: operators that change nothing, behind the router and in front of it."""
    old, new = site.under(site.gates)
    one = site.constant("planted_one", 1.0, np.float32)
    site.insert(
        *site.tie(site.logits),
        _node("Mul", [old, one], "planted_times_one"),
        _node("Where", ["planted_tie", "planted_times_one", old], new),
    )


def bias_for_each_head(site: Site) -> None:
    """Nothing is wrong: scores of equal numbers are told apart by a bias."""
    old, new = site.under(site.logits)
    bias = 0.01 * np.random.default_rng(0).standard_normal(site.routed)
    site.insert(_node("Add", [old, site.constant("planted_bias", bias, np.float32)], new))


RIGHT: Sequence[Fault] = (idle_operators, bias_for_each_head)


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


def _node(op: str, inputs: Sequence[str], *outputs: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), **attributes)

"""Follow attention farther than recognition does, to what looks like the gates of its heads."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx import graph
from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, flat, fresh_dim, leaves, resolve
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.fx.slices import SPLITS
from moh_deploy.frontend.fx.views import broadcast, forward, history, is_view, lacks, through_views
from moh_deploy.frontend.recognize import router_like
from moh_deploy.frontend.recognize.cores.softmax import elementwise_sources
from moh_deploy.frontend.recognize.gates import chain_of, closes_heads, without_axes
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.routers.router import NORMS, SELECTIONS
from moh_deploy.frontend.recognize.track import Tracked, token_axes
from moh_deploy.frontend.recognize.walk import walk

_CHOICES = frozenset(["gather", "index_select", "index", "take_along_dim"])
_ATTENTION = frozenset((*graph.SOFTMAXES, "scaled_dot_product_attention"))
_SUMS = frozenset(["add", "sub", "subtract"])

# So many nodes are looked at behind a product for the attention that it is the scores of.
_FAR = 50


@dataclass(frozen=True)
class Trail:
    """A tensor that carries attention, whether or not recognition could follow it there."""

    start: Node  # the softmax or fused attention, or a product of two computed tensors
    is_weights: bool  # it stands before the product with the values
    layout: Layout | None  # what the dimensions mean, as far as that is known
    channels: Dim | None  # the axes that only one head's output has; None where unknown
    tokens: Dim = ()  # the axes of the queries, as far as they are known
    rest: Dim = ()  # the axes besides: batch and heads
    projected: bool = False  # behind a product with weights: an output projection
    # The first operator that recognition did not follow; None where it did so far.
    lost: Node | None = None

    @property
    def heads(self) -> set[Axis]:
        """The axes that may be heads: a batch of fixed size stands in front of them."""
        counted = [axis for axis in leaves(self.rest) if router_like.is_counted(axis.size)]
        return set(counted[1:] or counted)


@dataclass(frozen=True)
class Miss:
    """Attention that meets what looks like its gates, and is part of no layer."""

    trail: Trail
    applied: Node
    gate: Node
    attends_to_channels: bool = False
    is_in_front: bool = False


class Follower:
    """Follows every attention, and collects what looks like its gates.

    Attributes:
        channel_gated: Attentions whose channels are multiplied with computed numbers.
        scaled: Attentions whose heads are multiplied with constants, none of them 0.
    """

    def __init__(
        self,
        tracked: Mapping[Node, Tracked],
        layers: Sequence[MoHLayer],
        dynamic: Collection[Node],
        constant: Constants,
    ) -> None:
        self.channel_gated, self.scaled = set[Node](), set[Node]()
        self._tracked, self._dynamic, self._constant = tracked, dynamic, constant
        self._ends = {layer.node for layer in layers}
        self._gated = {layer.core.anchor for layer in layers}
        # Whatever lies between a layer's softmax and its gates is the layer's.
        self._known = {n for layer in layers for n in chain_of(layer.core, layer.node, tracked)}
        self._trails: dict[Node, Trail] = {}
        self._before: dict[Node, frozenset[Node]] = {}

    @property
    def attention(self) -> set[Node]:
        """What carries attention, and the chains of layers up to their gates."""
        return {*self._trails, *self._known, *self._ends}

    def run(self, nodes: Sequence[Node]) -> list[Miss]:
        misses: dict[Node, Miss] = {}
        for node in nodes:
            if node.op != "call_function" or graph.reads_shape_only(node):
                continue
            for source in node.all_input_nodes:
                trail = self._trails.get(source)
                if trail is None or trail.start in misses or node in self._known:
                    continue
                miss = self._miss(node, source, trail)
                if miss is not None:
                    misses[trail.start] = miss
            found = self._visit(node)
            if found is not None:
                self._trails[node] = found
        return list(misses.values())

    def _visit(self, node: Node) -> Trail | None:
        value = node.meta.get("val")
        if isinstance(value, (list, tuple)) and graph.op(node) in SPLITS and value:
            value = value[0]
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        if node in self._ends or not is_float:
            return None
        if node in self._tracked:
            return _trail_of(self._tracked[node])
        # A softmax that tracking could not read: of scores [B, H, S, T], or of a router's logits.
        if graph.op(node) in graph.SOFTMAXES:
            lost = self._lost_scores(node)
            return None if lost is None else Trail(node, True, None, None, lost=lost)
        sources = [source for source in node.all_input_nodes if source in self._trails]
        if not sources:
            return self._begun(node)
        # What reads attention carries it on: values, projections, sums of several attentions.
        # Of weights and values that come of another attention, it is the weights' attention.
        source = next((s for s in sources if self._trails[s].is_weights), sources[0])
        trail = self._trails[source]
        name, projected = graph.op(node), router_like.projects(node, self._dynamic)
        if (
            name in router_like.SQUASHES
            or name in SELECTIONS
            or name == "scaled_dot_product_attention"
        ):
            return None
        if trail.projected and (name in NORMS or projected):
            return None
        if name in _SUMS and not trail.is_weights:
            # A value is added to attention that is computed from it: a residual ends the trail.
            if trail.start not in self._before:
                self._before[trail.start] = frozenset(graph.ancestors(trail.start))
            others = [inner for inner in graph.tensor_inputs(node) if inner not in self._trails]
            if any(other in self._before[trail.start] for other in others):
                return None
        layout, channels = _layout_behind(node, source, trail), trail.channels
        is_weights = trail.is_weights and (projected or not router_like.sums_product(node))
        if trail.is_weights and not is_weights:
            # [B, H, S, T] @ [B, H, T, D]: what the values bring are the channels.
            known = set(flat(trail.layout or ()))
            channels = tuple(axis for axis in flat(layout or ()) if axis not in known) or None
        return replace(
            trail,
            lost=trail.lost or node,
            layout=layout,
            channels=channels,
            is_weights=is_weights,
            projected=trail.projected or (projected and not trail.is_weights),
        )

    def _begun(self, node: Node) -> Trail | None:
        """A product of two computed tensors is taken for attention, if gates follow."""
        product = contraction(node)
        if product is None or not product.summed or router_like.projects(node, self._dynamic):
            return None
        # Linear attention: k' @ v [B, H, D, D], and q' @ that [B, H, S, D].
        if product.operands[0] is product.operands[1]:
            return None
        # Scores become weights before anything is attended.
        if router_like.weighs_experts(product, self._trails, self._dynamic) or self._is_scores(
            node
        ):
            return None
        return Trail(start=node, is_weights=False, layout=None, channels=None, lost=node)

    def _lost_scores(self, softmax: Node) -> Node | None:
        """The operator between a softmax and a product of computed tensors that cannot be read
        through: what writes into the scores, mixes heads, and the like.
        """
        # softmax <- views and element-wise operators <- lost <- the like <- q @ k [B, H, S, T]
        read, stack = set[Node](), [(cast(Node, softmax.args[0]), cast(Node | None, None))]
        while stack:
            begin, lost = stack.pop()
            reached = [node for node in elementwise_sources(begin) if node not in read]
            read.update(reached)
            for node in reached:
                if node in self._trails and graph.op(self._trails[node].start) in _ATTENTION:
                    continue  # the logits of a router that reads attention
                if router_like.sums_product(node) and not router_like.projects(node, self._dynamic):
                    return lost
                # One such operator is looked through: what lies farther away are no scores.
                if lost is None:
                    others = (inner for inner in graph.tensor_inputs(node) if inner not in read)
                    stack += [(other, node) for other in others]
        return None

    def _is_scores(self, node: Node) -> bool:
        def onward(node: Node) -> list[Node]:
            return [user for user in node.users if not router_like.projects(user, self._dynamic)]

        return any(
            user in self._tracked
            for near in islice(walk(node, onward), _FAR)
            for user in near.users
        )

    def _miss(self, node: Node, source: Node, trail: Trail) -> Miss | None:
        """A product of attention with a factor that looks like the gates of its heads."""
        # attention [B, S, H, D] times gate [B, S, H, 1], where(gate, attention, 0), or
        # attention.gather(2, heads)
        name = graph.op(node)
        if name in _CHOICES and source is node.args[0]:
            index = self._chosen(node, source, trail)
            return None if index is None else Miss(trail, node, index)
        gate: object = None
        layout: Layout | None = None
        product = contraction(node)
        if product is not None and source in product.operands:
            if product.summed and trail.is_weights:
                return None  # the values
            side = product.operands.index(source)
            gate = product.operands[1 - side]
            if trail.layout is not None:
                layout = product.layouts(trail.layout, side)[0]
        elif name in ("where", "masked_fill"):
            gate = node.args[name == "masked_fill"]
            if source is gate or not isinstance(gate, Node):
                return None
            layout = None if trail.layout is None else broadcast(gate, trail.layout)
        if not isinstance(gate, Node) or gate in self._trails:
            return None
        router = router_like.RouterLike(gate, self._trails, self._dynamic)
        if layout is None or trail.channels is None:
            varying, sizes = None, router_like.spread_sizes(gate, source)
        elif router.is_router and _is_of_channels(gate, layout, trail):
            return Miss(trail, node, gate, attends_to_channels=True)
        else:
            bare = without_axes(Operand(gate, layout), trail.channels)
            if bare is None:
                # Behind the output projection they are those of a block, as in a DiT.
                if gate in self._dynamic and not (trail.is_weights or trail.projected):
                    self.channel_gated.add(trail.start)
                return None
            varying = set(flat(bare.layout))
            sizes = [axis.size for axis in varying - set(leaves(trail.tokens))]
        if sizes is None:
            return None
        if router.is_router:
            is_gate = any(map(router_like.is_counted, sizes)) or router.is_cut
        else:
            is_gate = self._scales_heads(trail, router, varying)
        return Miss(trail, node, gate) if is_gate else None

    def _scales_heads(
        self, trail: Trail, router: router_like.RouterLike, varying: set[Axis] | None
    ) -> bool:
        """Tell whether a factor that is of no router, such as an input, gates heads all the same.

        Args:
            varying: The axes that it varies along; None where they are not known.
        """
        # Products of other computed tensors are divided by sums, decay with time, and the like.
        if graph.op(trail.start) not in _ATTENTION or trail.start in self._gated:
            return False
        if trail.projected and trail.lost is not None:
            return False  # weights have mixed the heads
        gate, heads = router.node, trail.heads
        if varying is None:
            # [B, S, H, 1] times an attention of so many heads
            extents = graph.shape(router_like.unexpanded(gate))
            of_heads = extents[-1:] == (1,) and any(axis.size in extents for axis in heads)
        else:
            of_heads = not heads.isdisjoint(varying)
        if gate in self._dynamic:
            # Of an attention with one head, a loop may take one entry of a mask of heads.
            return of_heads or (not heads and router.is_cut)
        if not of_heads or varying is None:
            return False
        if not closes_heads(gate, self._constant):
            self.scaled.add(trail.start)
            return False
        return True

    def gated_in_front(self, start: Node, tracked: Mapping[Node, Tracked]) -> Miss | None:
        """Queries, keys or values that what looks like gates of heads was applied to."""
        core = next(
            state.core
            for state in tracked.values()
            if state.core.anchor is start and state.stage == "output"
        )
        # softmax(q @ k) @ (v * gate): a gate of the token that is attended to, not of the query.
        for operand in core.operands:
            made = through_views(operand)
            product = contraction(made)
            if product is None or product.summed:
                continue
            for side, gate in enumerate(product.operands):
                trail = Trail(start, False, None, None)
                router = router_like.RouterLike(gate, self._trails, self._dynamic)
                others = router_like.spread_sizes(gate, product.operands[1 - side])
                if (
                    router.is_router
                    and others is not None
                    and any(map(router_like.is_counted, others))
                ):
                    return Miss(trail, made, gate, is_in_front=True)
        return None

    def _chosen(self, node: Node, source: Node, trail: Trail) -> Node | None:
        """`attention.gather(heads, index)`: the chosen heads are taken out."""
        if not graph.shape(node) or len(graph.shape(node)) != len(graph.shape(source)):
            return None
        # [B, S, H, D] -> [B, S, k, D]: the dimension whose size changes is that of the heads.
        for position, (got, had) in enumerate(
            zip(graph.shape(node), graph.shape(source), strict=True)
        ):
            if got == had or not (got.is_Integer and had.is_Integer):
                continue
            if trail.layout is not None and set(trail.layout[position]) <= set(trail.tokens):
                continue
            for index in graph.tensor_inputs(node):
                router = router_like.RouterLike(index, self._trails, self._dynamic)
                if index is not source and router.selection is not None:
                    return index
        return None


def _trail_of(state: Tracked) -> Trail:
    """Start a trail where recognition stopped, in axes of its own: following may split them."""
    # Views behind this point may regroup axes, which those of a layer must not notice.
    axes = {axis: Axis(axis.size) for axis in (*flat(state.layout), *state.value_axes)}
    tokens = token_axes(state.core)
    rest = tuple(a for a in flat(state.layout) if a not in {*tokens, *state.value_axes})
    if state.core.scores is None and not tokens:
        rest = rest[:-1]  # of [B, H, S]
    return Trail(
        start=state.core.anchor,
        is_weights=state.stage == "weights",
        layout=tuple(tuple(axes[axis] for axis in dim) for dim in resolve(state.layout)),
        channels=tuple(axes[axis] for axis in state.value_axes),
        tokens=tuple(axes[axis] for axis in tokens if axis in axes),
        rest=tuple(axes[axis] for axis in rest),
        projected=state.projection is not None,
    )


def _layout_behind(node: Node, source: Node, trail: Trail) -> Layout | None:
    """The layout of what an operator makes of a tensor, where that is plain."""
    layout = trail.layout
    if layout is None or not graph.is_tensor(node) or not graph.is_tensor(source):
        return None
    if is_view(node):
        return forward(node, layout)
    product = contraction(node)
    if product is not None and source in product.operands:
        return product.layouts(layout, product.operands.index(source))[1]
    # Of any other operator: dimensions that keep their size keep their meaning.
    if len(graph.shape(node)) != len(graph.shape(source)):
        return None
    moved = zip(layout, graph.shape(node), graph.shape(source), strict=True)
    return tuple(dim if got == had else fresh_dim(got) for dim, got, had in moved)


def _is_of_channels(gate: Node, layout: Layout, trail: Trail) -> bool:
    """Attention of channels to channels: what looks like its channels are the tokens."""
    if not trail.tokens or trail.channels is None or not lacks(layout, trail.tokens):
        return False
    if without_axes(Operand(gate, layout), trail.channels) is not None:
        return False
    # A gate for each channel, [B, 1, H * D], has heads and channels in one dimension, as a
    # projection made them.
    channels = set(leaves(trail.channels))
    _, first = history(gate, layout)[-1]
    if any(not channels.isdisjoint(dim) and set(dim) - channels for dim in first):
        return False
    return any(
        router_like.is_counted(axis.size) for dim in first for axis in dim if axis not in channels
    )

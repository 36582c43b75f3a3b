"""Say where attention with gates was lost: what looks like an MoH layer and was not read as one.

Recognition follows an attention as far as it can tell what each dimension means. Here it is
followed further, by what the operators are, and each product with it is asked whether the other
factor looks like the gates of heads. Where it does and no layer was recognised, the operator that
ended the recognition is named, with the line of the user's code.

    gates          of a router (something that ranks or squashes a projection), one value for all
                   channels of a head, and a value of its own for each head
    no near miss   mixtures of experts (their products are no attention), gates of channels, masks
                   of tokens, weights that pool tokens
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, Size, flat, fresh_dim, leaves, resolve
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import (
    ancestors,
    argument,
    is_tensor,
    op,
    reads_shape_only,
    shape,
    tensor_inputs,
)
from moh_deploy.frontend.fx.operand import Operand
from moh_deploy.frontend.fx.slices import SPLITS
from moh_deploy.frontend.fx.source_line import source_line
from moh_deploy.frontend.fx.views import broadcast, forward, history, is_view, lacks, through_views
from moh_deploy.frontend.recognize.cores.softmax import elementwise_sources
from moh_deploy.frontend.recognize.gates import chain_of, common_path, without_axes
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.routers.selection import NORMS, SELECTIONS, ends_router
from moh_deploy.frontend.recognize.track import Tracked, token_axes
from moh_deploy.package import NearMiss

_SQUASHES = frozenset(["softmax", "sigmoid", "hardsigmoid", "relu", "gt", "ge", "lt", "le"])
_CHOICES = frozenset(["gather", "index_select", "index", "take_along_dim"])
_MATRICES = frozenset(["one_hot", "scatter", "eq", "gt", "ge", "lt", "le"])
_ATTENTION = frozenset(["softmax", "scaled_dot_product_attention"])
_SUMS = frozenset(["add", "sub", "subtract"])


@dataclass(frozen=True)
class Trail:
    """A tensor that carries attention, whether or not recognition could follow it there.

    Attributes:
        start: The softmax or fused attention, or a product of two computed tensors.
        is_weights: It stands before the product with the values.
        layout: What the dimensions mean, as far as that is known.
        channels: The axes that only one head's output has; None where unknown.
        tokens: The axes of the queries, as far as they are known.
        projected: Behind a product with weights: an output projection.
        lost: The first operator that recognition did not follow; None where it did so far.
    """

    start: Node
    is_weights: bool
    layout: Layout | None
    channels: Dim | None
    tokens: Dim = ()
    projected: bool = False
    lost: Node | None = None


@dataclass(frozen=True)
class _Miss:
    """Attention that meets what looks like its gates, and is part of no layer."""

    trail: Trail
    applied: Node
    gate: Node
    attends_to_channels: bool = False
    is_in_front: bool = False


def find_near_misses(
    nodes: Sequence[Node],
    tracked: Mapping[Node, Tracked],
    layers: Sequence[MoHLayer],
    dynamic: Collection[Node],
) -> tuple[tuple[NearMiss, ...], int]:
    """Return what looks like an MoH layer and is none, and how many attentions have no gates.

    Args:
        nodes: The graph's nodes in execution order.
        tracked: What recognition knows of the tensors that carry attention.
        layers: What was recognised.
        dynamic: Nodes whose values depend on the model's inputs.
    """
    follower = _Follower(tracked, layers, dynamic)
    misses = follower.run(nodes)
    starts = {
        state.core.anchor: None for state in tracked.values() if state.stage == "output"
    }.keys()
    gated = {layer.core.anchor for layer in layers} | {miss.trail.start for miss in misses}
    in_front = [
        miss
        for start in starts - gated
        if (miss := follower.gated_in_front(start, tracked)) is not None
    ]
    in_order = {node: position for position, node in enumerate(nodes)}
    misses = sorted((*misses, *in_front), key=lambda miss: in_order[miss.trail.start])
    return _grouped(misses, tracked, dynamic), len(starts - gated) - len(in_front)


class _Follower:
    """Follows every attention, and collects what looks like its gates."""

    def __init__(
        self,
        tracked: Mapping[Node, Tracked],
        layers: Sequence[MoHLayer],
        dynamic: Collection[Node],
    ) -> None:
        self._tracked = tracked
        self._dynamic = dynamic
        self._ends = {layer.node for layer in layers}
        # Whatever lies between a layer's softmax and its gates is the layer's.
        self._known = {n for layer in layers for n in chain_of(layer.core, layer.node, tracked)}
        self._trails: dict[Node, Trail] = {}
        self._before: dict[Node, frozenset[Node]] = {}

    def run(self, nodes: Sequence[Node]) -> list[_Miss]:
        misses: dict[Node, _Miss] = {}
        for node in nodes:
            if node.op != "call_function" or reads_shape_only(node):
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
        if node in self._ends or not _is_float(node):
            return None
        if node in self._tracked:
            return _trail_of(self._tracked[node])
        if op(node) == "softmax":
            lost = self._lost_scores(node)
            return None if lost is None else Trail(node, True, None, None, lost=lost)
        sources = [source for source in node.all_input_nodes if source in self._trails]
        if not sources:
            return self._begun(node)
        # Of weights and values that come of another attention, it is the weights' attention.
        source = next((s for s in sources if self._trails[s].is_weights), sources[0])
        trail = self._trails[source]
        name = op(node)
        if name in _SQUASHES or name in SELECTIONS or name == "scaled_dot_product_attention":
            return None
        if trail.projected and (name in NORMS or self._projects(node)):
            return None
        if name in _SUMS and not trail.is_weights and self._is_residual(node, trail):
            return None
        product = contraction(node)
        is_product = product is not None and bool(product.summed)
        return replace(
            trail,
            lost=trail.lost or node,
            layout=_layout_behind(node, source, trail),
            is_weights=trail.is_weights and not (is_product and not self._projects(node)),
            projected=trail.projected or (self._projects(node) and not trail.is_weights),
        )

    def _begun(self, node: Node) -> Trail | None:
        """A product of two computed tensors is taken for attention, if gates follow."""
        product = contraction(node)
        if product is None or not product.summed or self._projects(node):
            return None
        if product.operands[0] is product.operands[1]:
            return None
        # What a choice weighs are experts, and scores become weights before anything is attended.
        routers = [_Router(operand, self._trails, self._dynamic) for operand in product.operands]
        if any(router.selects for router in routers) or self._is_scores(node):
            return None
        return Trail(start=node, is_weights=False, layout=None, channels=None, lost=node)

    def _lost_scores(self, softmax: Node) -> Node | None:
        """The operator between a softmax and a product of computed tensors that cannot be read
        through: what writes into the scores, mixes heads, and the like.
        """
        read, stack = set[Node](), [(cast(Node, softmax.args[0]), cast(Node | None, None))]
        while stack:
            begin, lost = stack.pop()
            reached = [one for one in elementwise_sources(begin) if one not in read]
            read.update(reached)
            for node in reached:
                if node in self._trails and op(self._trails[node].start) in _ATTENTION:
                    continue  # the logits of a router that reads attention
                if _sums_product(node) and not self._projects(node):
                    return lost
                # One such operator is looked through: what lies farther away are no scores.
                if lost is None:
                    others = (one for one in tensor_inputs(node) if one not in read)
                    stack += [(other, lost or node) for other in others]
        return None

    def _is_scores(self, node: Node) -> bool:
        stack, seen = [node], {node}
        while stack:
            for user in stack.pop().users:
                if user in self._tracked:
                    return True
                if user not in seen and not self._projects(user) and len(seen) < 50:
                    seen.add(user)
                    stack.append(user)
        return False

    def _projects(self, node: Node) -> bool:
        """True for a product with weights."""
        if op(node) in ("linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution"):
            return True
        product = contraction(node)
        return (
            product is not None
            and bool(product.summed)
            and any(operand not in self._dynamic for operand in product.operands)
        )

    def _is_residual(self, node: Node, trail: Trail) -> bool:
        """Tell whether a value is added to attention that is computed from it: a residual."""
        others = [one for one in tensor_inputs(node) if one not in self._trails]
        if trail.start not in self._before:
            self._before[trail.start] = frozenset(ancestors(trail.start))
        return any(one in self._before[trail.start] for one in others)

    def _miss(self, node: Node, source: Node, trail: Trail) -> _Miss | None:
        """A product of attention with a factor that looks like the gates of its heads."""
        name = op(node)
        if name in _CHOICES and source is node.args[0]:
            index = self._chosen(node, source, trail)
            return None if index is None else _Miss(trail, node, index)
        gate: object
        layout: Layout | None = None
        product = contraction(node)
        if product is not None and source in product.operands:
            if product.summed and trail.is_weights:
                return None  # the values
            side = product.operands.index(source)
            gate = product.operands[1 - side]
            if trail.layout is not None:
                layout = product.layouts(trail.layout, side)[0]
        elif name in ("where", "masked_fill") and source is not node.args[name == "masked_fill"]:
            gate = node.args[name == "masked_fill"]
            if trail.layout is not None and isinstance(gate, Node):
                layout = broadcast(gate, trail.layout)
        else:
            return None
        if not isinstance(gate, Node) or gate in self._trails:
            return None
        router = _Router(gate, self._trails, self._dynamic)
        if not router.is_router:
            return None
        if layout is not None and _is_of_channels(gate, layout, trail):
            return _Miss(trail, node, gate, attends_to_channels=True)
        others = _beside_channels(gate, layout, source, trail)
        is_gate = others is not None and (any(map(_is_counted, others)) or router.is_cut)
        return _Miss(trail, node, gate) if is_gate else None

    def gated_in_front(self, start: Node, tracked: Mapping[Node, Tracked]) -> _Miss | None:
        """Queries, keys or values that what looks like gates of heads was applied to."""
        core = next(
            state.core
            for state in tracked.values()
            if state.core.anchor is start and state.stage == "output"
        )
        for operand in core.operands:
            made = through_views(operand)
            product = contraction(made)
            if product is None or product.summed:
                continue
            for side, gate in enumerate(product.operands):
                trail = Trail(start, False, None, None)
                router = _Router(gate, self._trails, self._dynamic)
                others = _beside_channels(gate, None, product.operands[1 - side], trail)
                if router.is_router and others is not None and any(map(_is_counted, others)):
                    return _Miss(trail, made, gate, is_in_front=True)
        return None

    def _chosen(self, node: Node, source: Node, trail: Trail) -> Node | None:
        """`attention.gather(heads, index)`: the chosen heads are taken out."""
        if not shape(node) or len(shape(node)) != len(shape(source)):
            return None
        for position, (got, had) in enumerate(zip(shape(node), shape(source), strict=True)):
            if got == had or not (got.is_Integer and had.is_Integer):
                continue
            if trail.layout is not None and set(trail.layout[position]) <= set(trail.tokens):
                continue
            for index in tensor_inputs(node):
                if index is not source and _Router(index, self._trails, self._dynamic).selects:
                    return index
        return None


@dataclass(frozen=True)
class _Router:
    """Follow a tensor back to the projections, attention and products it is computed from."""

    node: Node
    stops: Collection[Node]
    dynamic: Collection[Node]

    @cached_property
    def cone(self) -> list[Node]:
        seen, queue, cone = {self.node}, [self.node], []
        while queue:
            current = queue.pop(0)
            cone.append(current)
            if self._is_end(current):
                continue
            for source in current.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    queue.append(source)
        return cone

    def _is_end(self, node: Node) -> bool:
        if node in self.stops or ends_router(node):
            return True
        # Of two computed tensors, a product with choices as a matrix of 0 and 1 is of the router;
        # any other, such as scores, is what a router reads.
        product = contraction(node)
        if product is None or not product.summed:
            return False
        return not any(op(through_views(one)) in _MATRICES for one in product.operands)

    @property
    def selects(self) -> bool:
        """It ranks a fixed number of candidates."""
        for node in self.cone:
            ranked = node.args[0] if op(node) in SELECTIONS else None
            if ranked is None or not is_tensor(ranked) or self._is_end(node):
                continue
            dim = argument(node, "dim", -1)
            extents = shape(cast(Node, ranked))
            if isinstance(dim, int) and extents and extents[dim].is_Integer and extents[dim] > 1:
                return True
        return False

    @property
    def is_router(self) -> bool:
        """It ranks candidates, or squashes what was projected from an input."""
        if self.selects:
            return True
        squashes = any(op(node) in _SQUASHES for node in self.cone)
        computed = any(node.op == "call_function" and self._is_end(node) for node in self.cone)
        return squashes and computed and self.node in self.dynamic

    @property
    def is_cut(self) -> bool:
        """It is one of several entries: `gates[..., 2:3]`, of a loop over heads."""
        for node in self.cone:
            name = op(node)
            if name == "_add_batch_dim":  # of torch.vmap over heads
                return True
            if name == "getitem" and op(cast(Node, node.args[0])) in SPLITS:
                split = cast(Node, node.args[0])
                cut = cast(int, argument(split, "dim", 0))
                if op(split) == "unbind" or shape(node)[cut] == 1:
                    return True
            if name in ("slice", "narrow", "select") and is_tensor(node.args[0]):
                source, dim = cast(Node, node.args[0]), argument(node, "dim", 0)
                twins = [user for user in source.users if op(user) == name]
                same = [user for user in twins if argument(user, "dim", 0) == dim]
                if len(same) > 1 and (name == "select" or shape(node)[cast(int, dim)] == 1):
                    return True
        return False


def _sums_product(node: Node) -> bool:
    product = contraction(node)
    return product is not None and bool(product.summed)


def _trail_of(state: Tracked) -> Trail:
    """Start a trail where recognition stopped, in axes of its own: following may split them."""
    axes = {axis: Axis(axis.size) for axis in (*flat(state.layout), *state.value_axes)}
    return Trail(
        start=state.core.anchor,
        is_weights=state.stage == "weights",
        layout=tuple(tuple(axes[axis] for axis in dim) for dim in resolve(state.layout)),
        channels=tuple(axes[axis] for axis in state.value_axes),
        tokens=tuple(axes[axis] for axis in token_axes(state.core) if axis in axes),
        projected=state.projection is not None,
    )


def _layout_behind(node: Node, source: Node, trail: Trail) -> Layout | None:
    """The layout of what an operator makes of a tensor, where that is plain."""
    layout = trail.layout
    if layout is None or not is_tensor(node) or not is_tensor(source):
        return None
    if is_view(node):
        return forward(node, layout)
    product = contraction(node)
    if product is not None and source in product.operands:
        return product.layouts(layout, product.operands.index(source))[1]
    if len(shape(node)) != len(shape(source)):
        return None
    moved = zip(layout, shape(node), shape(source), strict=True)
    return tuple(dim if got == had else fresh_dim(got) for dim, got, had in moved)


def _beside_channels(
    gate: Node, layout: Layout | None, source: Node, trail: Trail
) -> list[Size] | None:
    """The sizes that the gate varies along, but for tokens; None if it varies along channels.

    Where the layout is not known, it has to be broadcast at least.
    """
    if layout is not None and trail.channels is not None:
        bare = without_axes(Operand(gate, layout), trail.channels)
        if bare is None:
            return None
        others = set(flat(bare.layout)) - set(leaves(trail.tokens))
        return [axis.size for axis in others]
    while op(gate) in ("expand", "expand_as", "broadcast_to", "repeat") and is_tensor(gate.args[0]):
        gate = cast(Node, gate.args[0])
    given, whole = shape(gate), shape(source)
    aligned = zip(reversed(given), reversed(whole), strict=False)
    spread = len(given) < len(whole) or any(a == 1 != b for a, b in aligned)
    return list(given) if spread else None


def _is_counted(size: Size) -> bool:
    """Heads are so many, whatever the input."""
    return bool(size.is_Integer and size > 1)


def _is_of_channels(gate: Node, layout: Layout, trail: Trail) -> bool:
    """Attention of channels to channels: what looks like its channels are the tokens."""
    if not trail.tokens or trail.channels is None or not lacks(layout, trail.tokens):
        return False
    if without_axes(Operand(gate, layout), trail.channels) is not None:
        return False
    # A gate for each channel has heads and channels in one dimension, as a projection made them.
    channels = set(leaves(trail.channels))
    _, first = history(gate, layout)[-1]
    others = [set(dim) - channels for dim in first]
    apart = not any(rest and rest != set(dim) for rest, dim in zip(others, first, strict=True))
    return apart and any(_is_counted(axis.size) for rest in others for axis in rest)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)) and op(node) in SPLITS and value:
        value = value[0]
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _grouped(
    misses: Sequence[_Miss], tracked: Mapping[Node, Tracked], dynamic: Collection[Node]
) -> tuple[NearMiss, ...]:
    """One entry a reason and place; layers of one class share theirs."""
    found: dict[tuple[str, str | None, str | None], dict[str, None]] = {}
    for miss in misses:
        lost = _lost_at(miss, tracked)
        reason = _reason(miss, lost, dynamic)
        key = (reason, source_line(lost), source_line(miss.applied))
        path = ".".join(common_path(miss.trail.start, miss.applied)) or "model"
        found.setdefault(key, {}).setdefault(path)
    return tuple(
        NearMiss(tuple(paths), reason, place, gates)
        for (reason, place, gates), paths in found.items()
    )


def _lost_at(miss: _Miss, tracked: Mapping[Node, Tracked]) -> Node:
    """The operator at which recognition ended, or the product with gates if these are at fault."""
    if miss.trail.lost is not None:
        return miss.trail.lost
    if miss.is_in_front:
        return miss.applied
    if miss.attends_to_channels:
        return miss.trail.start
    if miss.applied not in tracked:
        return miss.applied
    # Attention and gates are known: what follows them was to merge the heads.
    queue, seen = [miss.applied], {miss.applied}
    while queue:
        for user in queue.pop(0).users:
            if user.op == "call_function" and user not in tracked and not is_view(user):
                return user
            if user not in seen:
                seen.add(user)
                queue.append(user)
    return miss.applied


def _reason(miss: _Miss, lost: Node, dynamic: Collection[Node]) -> str:
    start, name = miss.trail.start, op(lost)
    if miss.is_in_front:
        return (
            f"what looks like gates is multiplied with what {op(start)} reads, not with its heads"
        )
    if miss.gate not in dynamic:
        return "the attention was followed; its gates depend on no input"
    if miss.attends_to_channels:
        return f"{op(start)} weighs channels, not tokens, and the gates are those of tokens"
    if start is lost:
        return f"{name} multiplies computed tensors as attention does, but is no softmax of scores"
    if lost in set(ancestors(start)):
        return f"the scores of {op(start)} were lost at {name}"
    if miss.trail.lost is not None or lost is miss.applied:
        return f"{op(start)} was followed; lost at {name}"
    return f"{op(start)} and its gates were followed; lost at {name}, before heads were merged"

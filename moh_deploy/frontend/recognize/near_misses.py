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

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar, cast

from torch.fx import Node

from moh_deploy.frontend.fx import graph
from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, flat, fresh_layout, leaves, resolve
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.fx.views import forward, is_view
from moh_deploy.frontend.recognize import router_like
from moh_deploy.frontend.recognize.gates import common_path
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.routers.router import router_cone
from moh_deploy.frontend.recognize.track import Tracked
from moh_deploy.frontend.recognize.trails import Follower, Miss
from moh_deploy.frontend.recognize.walk import walk
from moh_deploy.package import NearMiss, OtherGates, OtherRouter

_Key = TypeVar("_Key", bound=tuple[object, ...])

_INDEX_SUMS = frozenset(["index_add", "scatter_add", "scatter_reduce", "index_put", "index_reduce"])


@dataclass(frozen=True)
class Recognized:
    """Keep the layers of a program, and the attention that belongs to none."""

    layers: tuple[MoHLayer, ...]  # the MoH layers, in execution order
    near_misses: tuple[NearMiss, ...]  # what looks like one and was not read as such
    other_routers: tuple[OtherRouter, ...]  # routers that weigh no attention
    ungated: int  # how many attentions have no gates
    other_gates: Mapping[OtherGates, int]  # how many have gates of another kind


def find_near_misses(
    nodes: Sequence[Node],
    tracked: Mapping[Node, Tracked],
    layers: Sequence[MoHLayer],
    dynamic: Collection[Node],
    constant: Constants,
) -> Recognized:
    """Return the layers, the gated attention that is no layer, the routers that weigh no attention,
    and how many attentions have no gates of heads.

    Args:
        tracked: What recognition knows of the tensors that carry attention.
    """
    follower = Follower(tracked, layers, dynamic, constant)
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
    gates = [operand.node for layer in layers for operand in layer.gates]
    gates += [miss.gate for miss in (*misses, *in_front)]
    routed = set(chain.from_iterable(map(router_cone, gates)))
    elsewhere = heads_elsewhere(nodes, follower.attention, routed, dynamic)
    told = [_told(miss, tracked, dynamic) for miss in (*misses, *in_front)]
    for place in (place for place in elsewhere if place.are_heads):
        maker = place.made_by
        name = graph.op(maker)
        reason = f"gates of heads multiply the output of {name}, which is no softmax of scores"
        if name in _INDEX_SUMS:
            reason = _index_sum(maker)
        told.append(_Told(maker, reason, maker, place.applied))
    in_order = {node: position for position, node in enumerate(nodes)}
    missed = _grouped(
        (
            (miss.reason, graph.source_line(miss.lost), graph.source_line(miss.applied)),
            miss.begin,
            miss.applied,
        )
        for miss in sorted(told, key=lambda miss: in_order[miss.begin])
    )
    others = _grouped(
        (_other_router(place), place.router, place.applied)
        for place in elsewhere
        if not place.are_heads
    )
    plain = starts - gated - {miss.trail.start for miss in in_front}
    other_gates: dict[OtherGates, int] = {
        "channels": len(plain & follower.channel_gated),
        "heads": len(plain & follower.scaled - follower.channel_gated),
    }
    return Recognized(
        layers=tuple(layers),
        near_misses=tuple(NearMiss(paths, *key) for key, paths in missed.items()),
        other_routers=tuple(OtherRouter(paths, *key) for key, paths in others.items()),
        ungated=len(plain) - sum(other_gates.values()),
        other_gates={kind: number for kind, number in other_gates.items() if number},
    )


@dataclass(frozen=True)
class _Told:
    """A near miss in words: from where on, why, and between which operators."""

    begin: Node
    reason: str
    lost: Node
    applied: Node


def _told(miss: Miss, tracked: Mapping[Node, Tracked], dynamic: Collection[Node]) -> _Told:
    start, lost = miss.trail.start, _lost_at(miss, tracked)
    # Scores of edges are products of computed tensors, too: what sums them up says more.
    for node in graph.ancestors(miss.applied, stop={start}) if start is lost else ():
        if graph.op(node) in _INDEX_SUMS and start in graph.ancestors(node):
            return _Told(start, _index_sum(node), node, miss.applied)
    return _Told(start, _reason(miss, lost, dynamic), lost, miss.applied)


def _index_sum(node: Node) -> str:
    return f"{graph.op(node)} sums over an index, as attention over edges does, not over all keys"


def _grouped(told: Iterable[tuple[_Key, Node, Node]]) -> dict[_Key, tuple[str, ...]]:
    """The module paths of what is told in the same words: layers of one class share theirs.

    Args:
        told: The words, and the first and last node of each.
    """
    found: dict[_Key, dict[str, None]] = {}
    for key, first, last in told:
        found.setdefault(key, {}).setdefault(".".join(common_path(first, last)) or "model")
    return {key: tuple(paths) for key, paths in found.items()}


def _other_router(place: HeadsElsewhere) -> tuple[str, str | None, str, str | None]:
    """What ranks or weighs, among how many candidates, what it weighs, and both places."""
    router, maker = place.router, place.made_by
    number = graph.example_shape(cast(Node, router.args[0]))[
        cast(int, graph.argument(router, "dim", -1))
    ]
    kept = f"{graph.argument(router, 'k')} among " if graph.op(router) == "topk" else ""
    routing = f"{graph.op(router)} of {kept}{number}"
    return (
        routing,
        graph.source_line(router),
        graph.op(maker) or maker.name,
        graph.source_line(place.applied),
    )


def _lost_at(miss: Miss, tracked: Mapping[Node, Tracked]) -> Node:
    """The operator at which recognition ended, or the product with gates if these are at fault."""
    if miss.trail.lost is not None:
        return miss.trail.lost
    if miss.is_in_front:
        return miss.applied
    if miss.attends_to_channels:
        return miss.trail.start
    if miss.applied not in tracked:
        return miss.applied
    # Attention and gates [B, S, H, D] are known: what follows them was to merge the heads.
    readers = walk(miss.applied, lambda node: node.users)
    ends = (n for n in readers if n.op == "call_function" and n not in tracked and not is_view(n))
    return next(ends, miss.applied)


def _reason(miss: Miss, lost: Node, dynamic: Collection[Node]) -> str:
    start, name = miss.trail.start, graph.op(lost)
    if miss.is_in_front:
        read = f"what {graph.op(start)} reads"
        return f"what looks like gates is multiplied with {read}, not with its heads"
    if miss.attends_to_channels:
        return f"{graph.op(start)} weighs channels, not tokens, and the gates are those of tokens"
    if start is lost:
        # Delays, say, are chosen among scores of a product with computed tensors.
        factors = contraction(start)
        for operand in factors.operands if factors else ():
            router = router_like.RouterLike(operand, (), dynamic)
            if router.ranks_scores and router.selection is not None:
                chosen = graph.op(router.selection)
                return f"{name} weighs what {chosen} chose among scores, not all keys"
        return f"{name} multiplies computed tensors as attention does, but is no softmax of scores"
    if lost in set(graph.ancestors(start)):
        return f"the scores of {graph.op(start)} were lost at {name}"
    if miss.trail.lost is not None or lost is miss.applied:
        return f"{graph.op(start)} was followed; lost at {name}"
    return (
        f"{graph.op(start)} and its gates were followed; lost at {name}, before heads were merged"
    )


# Find products with what looks like gates, where no attention is known to be multiplied. What is
# multiplied is followed back through views and functions of elements to its operator:
#
#   sums over an index, moved tokens   heads, if they are merged behind the product: attention in
#                                      another form than softmax(query @ key) @ value
#   projections, inputs                no heads of an attention: a mixture of experts, say

# Nodes that are looked at behind a product for where its heads are merged.
_FAR = 50


@dataclass(frozen=True)
class HeadsElsewhere:
    """A product of what looks like the gates of heads with what may be heads."""

    applied: Node
    gate: Node
    router: Node  # what ranks or weighs candidates for the gates
    made_by: Node  # the operator that computes what is multiplied
    are_heads: bool  # that operator mixes tokens, and the product's heads are merged


def heads_elsewhere(
    nodes: Sequence[Node],
    attention: Set[Node],
    routed: Collection[Node],
    dynamic: Collection[Node],
) -> list[HeadsElsewhere]:
    """Return products with gates that are of no attention, one a router.

    Args:
        attention: Tensors that carry attention, and products that gates of layers are in.
        routed: What the routers of attention are computed with.
    """
    found: dict[Node, HeadsElsewhere] = {}
    for node in nodes:
        if not graph.is_tensor(node) or graph.reads_shape_only(node):
            continue
        # A product with values that is summed up behind it is of that attention.
        if not attention.isdisjoint(
            {node, *(user for user in node.users if graph.op(user) == "sum")}
        ):
            continue
        for gate, whole in _factors(node):
            if whole in attention or gate in attention or {gate, whole} - set(dynamic):
                continue
            place = _with_gates(node, gate, whole, attention, dynamic)
            if place is not None and place.router not in routed:
                before = found.get(place.router)
                if before is None or (place.are_heads and not before.are_heads):
                    found[place.router] = place
    # Groups of candidates that are ranked first are of the router that ranks these.
    inner = {
        node
        for place in found.values()
        for node in router_like.RouterLike(place.gate, attention, dynamic).cone
        if node is not place.applied
    }
    return [place for place in found.values() if place.applied not in inner]


def _factors(node: Node) -> Iterator[tuple[Node, Node]]:
    """A tensor that may be gates, and the product it stands in."""
    product = contraction(node)
    if product is not None and product.operands[0] is not product.operands[1]:
        yield product.operands
        yield product.operands[1], product.operands[0]
    elif graph.op(node) == "where" and graph.is_tensor(node.args[0]):
        kept = [value for value in node.args[1:3] if graph.is_tensor(value)]
        if len(kept) == 1:
            yield cast(Node, node.args[0]), cast(Node, kept[0])


def _with_gates(
    node: Node, gate: Node, whole: Node, attention: Collection[Node], dynamic: Collection[Node]
) -> HeadsElsewhere | None:
    sizes = router_like.spread_sizes(gate, whole)
    if sizes is None:
        return None
    like = router_like.RouterLike(gate, attention, dynamic)
    counted = any(router_like.is_counted(size) and size in graph.shape(whole) for size in sizes)
    is_one = not counted and (like.is_cut or like.takes_one)
    if not (counted or is_one) or not like.is_router or like.ranks_scores:
        return None
    mixes, maker = router_like.made_by(whole, attention, dynamic)
    are_heads = mixes and (_are_joined(node) if like.is_cut else _are_merged(node, gate, whole))
    # What only squashes gates channels in many models: it routes, if it is heads that it gates.
    router = like.selection or like.weighing or (like.squash if are_heads else None)
    return None if router is None else HeadsElsewhere(node, gate, router, maker, are_heads)


def _are_merged(node: Node, gate: Node, whole: Node) -> bool:
    """Tell whether what the gates vary along is merged with what they do not, as heads are with
    their channels.
    """
    product = contraction(node)
    if product is not None and product.summed:
        return False
    layout = fresh_layout(graph.shape(node))
    of_gates, of_whole = _varying(router_like.unexpanded(gate), layout), _varying(whole, layout)
    heads, channels = of_gates & of_whole, of_whole - of_gates
    if len(channels) != 1:  # rows and columns of an image, say
        return False
    # Forward from [B, S, H, D] to a view [B, S, H * D], or a product that sums over both.
    queue: list[tuple[Node, Layout]] = [(node, layout)]
    seen = {node}
    while queue and len(seen) < _FAR:
        current, known = queue.pop(0)
        if any(_has_both(dim, heads, channels) for dim in resolve(known)):
            return True
        for user in current.users:
            if user in seen or not graph.is_tensor(user):
                continue
            seen.add(user)
            found = contraction(user)
            if found is not None and found.summed and current in found.operands:
                _, out = found.layouts(known, found.operands.index(current))
                summed = tuple(axis for axis in flat(known) if axis not in set(flat(out)))
                if _has_both(summed, heads, channels):
                    return True
            elif is_view(user):
                moved = forward(user, known)
                queue += [] if moved is None else [(user, moved)]
            elif graph.shape(user) == graph.shape(current):
                queue.append((user, known))
    return False


def _varying(node: Node, layout: Layout) -> set[Axis]:
    """The axes of a product that one of its factors varies along, as many as there always are."""
    aligned = zip(reversed(graph.shape(node)), reversed(layout), strict=False)
    return {axis for extent, dim in aligned if router_like.is_counted(extent) for axis in dim}


def _has_both(axes: Dim, heads: set[Axis], channels: set[Axis]) -> bool:
    return all(set(axes) & set(leaves(wanted)) for wanted in (heads, channels))


def _are_joined(node: Node) -> bool:
    """Tell whether a product with the gate of one head is put beside those of others."""

    def onward(current: Node) -> list[Node]:
        if current is not node and not (is_view(current) or graph.is_function_of_elements(current)):
            return []
        return [user for user in current.users if graph.is_tensor(user)]

    return any(graph.op(user) in ("cat", "stack") for user in islice(walk(node, onward), _FAR))

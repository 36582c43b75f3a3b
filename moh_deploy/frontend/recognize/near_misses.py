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
from dataclasses import dataclass
from itertools import chain
from typing import cast

from torch.fx import Node

from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import ancestors, argument, example_shape, op, source_line
from moh_deploy.frontend.fx.views import is_view
from moh_deploy.frontend.recognize.gates import common_path
from moh_deploy.frontend.recognize.heads_elsewhere import HeadsElsewhere, heads_elsewhere
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.router_like import RouterLike
from moh_deploy.frontend.recognize.routers.selection import router_cone
from moh_deploy.frontend.recognize.track import Tracked
from moh_deploy.frontend.recognize.trails import Follower, Miss
from moh_deploy.package import NearMiss, OtherRouter

_INDEX_SUMS = frozenset(["index_add", "scatter_add", "scatter_reduce", "index_put", "index_reduce"])


@dataclass(frozen=True)
class Missed:
    """Near misses and routers that weigh no attention: all that belongs to no layer.

    Attributes:
        near_misses: What looks like a layer and was not read as one.
        other_routers: Routers that weigh no attention.
        ungated: How many attentions have no gates.
    """

    near_misses: tuple[NearMiss, ...]
    other_routers: tuple[OtherRouter, ...]
    ungated: int


def find_near_misses(
    nodes: Sequence[Node],
    tracked: Mapping[Node, Tracked],
    layers: Sequence[MoHLayer],
    dynamic: Collection[Node],
) -> Missed:
    """Return what looks like an MoH layer and is none, and what else is routed or attends.

    Args:
        nodes: The graph's nodes in execution order.
        tracked: What recognition knows of the tensors that carry attention.
        layers: What was recognised.
        dynamic: Nodes whose values depend on the model's inputs.
    """
    follower = Follower(tracked, layers, dynamic)
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
    told = [
        *(_told(miss, tracked, dynamic) for miss in (*misses, *in_front)),
        *(_told_elsewhere(found) for found in elsewhere if found.are_heads),
    ]
    in_order = {node: position for position, node in enumerate(nodes)}
    return Missed(
        near_misses=_grouped(sorted(told, key=lambda item: in_order[item.begin])),
        other_routers=_other_routers([found for found in elsewhere if not found.are_heads]),
        ungated=len(starts - gated) - len(in_front),
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
    if start is lost:
        # Scores of edges are products of computed tensors, too: what sums them up says more.
        for node in ancestors(miss.applied, stop={start}):
            if op(node) in _INDEX_SUMS and start in ancestors(node):
                return _Told(start, _index_sum(node), node, miss.applied)
    return _Told(start, _reason(miss, lost, dynamic), lost, miss.applied)


def _told_elsewhere(place: HeadsElsewhere) -> _Told:
    name = op(place.made_by)
    reason = f"gates of heads multiply what {name} makes, which is no softmax of scores"
    if name in _INDEX_SUMS:
        reason = _index_sum(place.made_by)
    return _Told(place.made_by, reason, place.made_by, place.applied)


def _index_sum(node: Node) -> str:
    return f"{op(node)} sums over an index, as attention over edges does, not over all keys"


def _grouped(told: Sequence[_Told]) -> tuple[NearMiss, ...]:
    """One entry a reason and place; layers of one class share theirs."""
    found: dict[tuple[str, str | None, str | None], dict[str, None]] = {}
    for miss in told:
        key = (miss.reason, source_line(miss.lost), source_line(miss.applied))
        found.setdefault(key, {}).setdefault(_path(miss.begin, miss.applied))
    return tuple(
        NearMiss(tuple(paths), reason, place, gates)
        for (reason, place, gates), paths in found.items()
    )


def _other_routers(elsewhere: Sequence[HeadsElsewhere]) -> tuple[OtherRouter, ...]:
    """One entry for routers of one class."""
    found: dict[tuple[str, str | None, str, str | None], dict[str, None]] = {}
    for place_found in elsewhere:
        place, applied = source_line(place_found.router), source_line(place_found.applied)
        key = (
            _routing(place_found.router),
            place,
            op(place_found.made_by) or place_found.made_by.name,
            applied,
        )
        found.setdefault(key, {}).setdefault(_path(place_found.router, place_found.applied))
    return tuple(OtherRouter(tuple(paths), *key) for key, paths in found.items())


def _routing(router: Node) -> str:
    """Say what ranks or weighs how many candidates."""
    name, scores = op(router), cast(Node, router.args[0])
    number = example_shape(scores)[cast(int, argument(router, "dim", -1))]
    return (
        f"topk of {argument(router, 'k')} among {number}"
        if name == "topk"
        else f"{name} of {number}"
    )


def _path(first: Node, second: Node) -> str:
    return ".".join(common_path(first, second)) or "model"


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


def _reason(miss: Miss, lost: Node, dynamic: Collection[Node]) -> str:
    start, name = miss.trail.start, op(lost)
    if miss.is_in_front:
        return (
            f"what looks like gates is multiplied with what {op(start)} reads, not with its heads"
        )
    if miss.gate not in dynamic:
        return "the attention was followed; its gates depend on no input"
    if miss.attends_to_channels:
        return f"{op(start)} weighs channels, not tokens, and the gates are those of tokens"
    chosen = _chosen_scores(start, dynamic) if start is lost else None
    if chosen is not None:
        return f"{name} weighs what {op(chosen)} chose among scores, not all keys"
    if start is lost:
        return f"{name} multiplies computed tensors as attention does, but is no softmax of scores"
    if lost in set(ancestors(start)):
        return f"the scores of {op(start)} were lost at {name}"
    if miss.trail.lost is not None or lost is miss.applied:
        return f"{op(start)} was followed; lost at {name}"
    return f"{op(start)} and its gates were followed; lost at {name}, before heads were merged"


def _chosen_scores(product: Node, dynamic: Collection[Node]) -> Node | None:
    """What chooses among scores for a product with computed tensors, as delays are chosen."""
    factors = contraction(product)
    routers = [
        RouterLike(operand, (), dynamic) for operand in (factors.operands if factors else ())
    ]
    return next((router.selection for router in routers if router.ranks_scores), None)

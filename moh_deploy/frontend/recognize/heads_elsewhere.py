"""Find products with what looks like gates, where no attention is known to be multiplied.

What is multiplied is followed back through views and functions of elements to what makes it:

    sums over an index, moved tokens   heads, if they are merged behind the product: attention in
    and the like                       another form than softmax(query @ key) @ value
    projections, inputs                no heads of an attention: a mixture of experts, say
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import cast

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, flat, fresh_layout, leaves, resolve
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import (
    is_function_of_elements,
    is_tensor,
    op,
    reads_shape_only,
    shape,
)
from moh_deploy.frontend.fx.views import forward, is_view
from moh_deploy.frontend.recognize.made_by import made_by
from moh_deploy.frontend.recognize.router_like import (
    RouterLike,
    is_counted,
    spread_sizes,
    unexpanded,
)

# Nodes that are looked at behind a product for where its heads are merged.
_FAR = 50


@dataclass(frozen=True)
class HeadsElsewhere:
    """A product of what looks like the gates of heads with what may be heads.

    Attributes:
        applied: The product.
        gate: The gates.
        router: What ranks or weighs candidates for the gates.
        made_by: The operator that makes what is multiplied.
        are_heads: That operator mixes tokens, and the product's heads are merged.
    """

    applied: Node
    gate: Node
    router: Node
    made_by: Node
    are_heads: bool


def heads_elsewhere(
    nodes: Sequence[Node],
    attention: Set[Node],
    routed: Collection[Node],
    dynamic: Collection[Node],
) -> list[HeadsElsewhere]:
    """Return products with gates that are of no attention, one a router.

    Args:
        nodes: The graph's nodes in execution order.
        attention: Tensors that carry attention, and products that gates of layers are in.
        routed: What the routers of attention are computed with.
        dynamic: Nodes whose values depend on the model's inputs.
    """
    found: dict[Node, HeadsElsewhere] = {}
    for node in nodes:
        if not is_tensor(node) or reads_shape_only(node):
            continue
        # A product with values that is summed up behind it is of that attention.
        if not attention.isdisjoint({node, *(user for user in node.users if op(user) == "sum")}):
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
        for node in RouterLike(place.gate, attention, dynamic).cone
        if node is not place.applied
    }
    return [place for place in found.values() if place.applied not in inner]


def _factors(node: Node) -> Iterator[tuple[Node, Node]]:
    """A tensor that may be gates, and the product it stands in."""
    product = contraction(node)
    if product is not None and product.operands[0] is not product.operands[1]:
        yield product.operands
        yield product.operands[1], product.operands[0]
    elif op(node) == "where" and is_tensor(node.args[0]):
        kept = [value for value in node.args[1:3] if is_tensor(value)]
        if len(kept) == 1:
            yield cast(Node, node.args[0]), cast(Node, kept[0])


def _with_gates(
    node: Node, gate: Node, whole: Node, attention: Collection[Node], dynamic: Collection[Node]
) -> HeadsElsewhere | None:
    sizes = spread_sizes(gate, whole)
    if sizes is None:
        return None
    like = RouterLike(gate, attention, dynamic)
    counted = any(is_counted(size) and size in shape(whole) for size in sizes)
    is_one = not counted and (like.is_cut or like.takes_one)
    if not (counted or is_one) or not like.is_router or like.ranks_scores:
        return None
    mixes, maker = made_by(whole, attention, dynamic)
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
    layout = fresh_layout(shape(node))
    of_gates, of_whole = _varying(unexpanded(gate), layout), _varying(whole, layout)
    heads, channels = of_gates & of_whole, of_whole - of_gates
    if len(channels) != 1:  # rows and columns of an image, say
        return False
    queue: list[tuple[Node, Layout]] = [(node, layout)]
    seen = {node}
    while queue and len(seen) < _FAR:
        current, known = queue.pop(0)
        if any(_has_both(dim, heads, channels) for dim in resolve(known)):
            return True
        for user in current.users:
            if user in seen or not is_tensor(user):
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
            elif shape(user) == shape(current):
                queue.append((user, known))
    return False


def _varying(node: Node, layout: Layout) -> set[Axis]:
    """The axes of a product that one of its factors varies along, as many as there always are."""
    aligned = zip(reversed(shape(node)), reversed(layout), strict=False)
    return {axis for extent, dim in aligned if is_counted(extent) for axis in dim}


def _has_both(axes: Dim, heads: set[Axis], channels: set[Axis]) -> bool:
    return all(set(axes) & set(leaves(wanted)) for wanted in (heads, channels))


def _are_joined(node: Node) -> bool:
    """Tell whether a product with the gate of one head is put beside those of others."""
    queue, seen = [node], {node}
    while queue and len(seen) < _FAR:
        for user in queue.pop(0).users:
            if op(user) in ("cat", "stack"):
                return True
            if (
                user not in seen
                and is_tensor(user)
                and (is_view(user) or is_function_of_elements(user))
            ):
                seen.add(user)
                queue.append(user)
    return False

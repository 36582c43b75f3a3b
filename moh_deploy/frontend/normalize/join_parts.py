"""Gates of parts of an attention's tokens, put together to gates of all.

Two streams may attend to both, each with weights of its own, and then go apart again:
`y[:, :n] * a, y[:, n:] * b`. That is `y * cat([a, b])`, cut apart behind it; in that form the
attention is gated as a whole.

Source: arXiv 2403.03206, figure 2b, is the attention that is usually written so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Size, size_of
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.contraction import Labels, contraction
from moh_deploy.frontend.fx.graph import (
    ancestors,
    argument,
    is_tensor,
    op,
    rank,
    reads_shape_only,
    shape,
)
from moh_deploy.frontend.fx.views import through_views
from moh_deploy.frontend.normalize.factor import aligned_factor

aten = torch.ops.aten

_PRODUCTS = frozenset(["matmul", "bmm", "einsum"])


@dataclass(frozen=True)
class _Part:
    """A part of some tokens and what it is multiplied with.

    Attributes:
        node: The slice, or one of the pieces of a split.
        start: The first entry.
        product: Its only reader.
        factor: The gates; they do not vary along the last dimension.
        labels, out: Of the dimensions of the factor and of the product.
    """

    node: Node
    start: Size
    product: Node
    factor: Node
    labels: Labels
    out: Labels


def join_parts(source: Node) -> None:
    """Gate an attention's output as a whole where each of its parts is gated, if it is that."""
    if not _is_attention(source):
        return
    found = _parts(source)
    if found is None:
        return
    dim, parts = found
    order = {node: position for position, node in enumerate(source.graph.nodes)}
    first = min((part.product for part in parts), key=order.__getitem__)
    products = {part.product for part in parts}
    needed = set(ancestors(*(part.factor for part in parts)))
    # All factors have to have the same dimensions, that of the cut among them.
    reach = {frozenset(p.out.index(label) for label in p.labels if label) for p in parts}
    if needed & products or len(reach) != 1 or dim not in next(iter(reach)):
        return
    for node in sorted(needed, key=order.__getitem__):
        if order[node] > order[first]:
            first.prepend(node)  # gates of a later stream do not wait for the first one's output
    builder = GraphBuilder(source.graph, first)
    gates = [aligned_factor(builder, p.factor, p.labels, p.out) for p in parts]
    whole = builder.call(aten.mul.Tensor, source, builder.call(aten.cat.default, gates, dim))
    for part in parts:
        _cut_behind(part, whole, source)


def _is_attention(node: Node) -> bool:
    """The product of a softmax with values, through views; fused or written out."""
    if not is_tensor(node) or rank(node) < 3:
        return False
    node = through_views(node)
    if op(node) == "scaled_dot_product_attention":
        return True
    return op(node) in _PRODUCTS and any(
        op(through_views(source)) == "softmax" for source in node.all_input_nodes
    )


def _parts(source: Node) -> tuple[int, list[_Part]] | None:
    """The gated parts that make up all of a tensor, in order, and the dimension they are cut in."""
    cuts = [cut for user in source.users for cut in _cuts(user, source)]
    dims = {dim for _, dim, _ in cuts}
    readers = {user for user in source.users if not reads_shape_only(user)}
    if len(dims) != 1 or readers != {_cutter(node, source) for node, _, _ in cuts}:
        return None
    (dim,) = dims
    parts = [_part(node, start) for node, _, start in cuts]
    known = {part.start: part for part in parts if part is not None}
    in_order: list[_Part] = []
    at: Size = size_of(0)
    while at in known:
        in_order.append(known[at])
        at = at + shape(known.pop(at).node)[dim]
    complete = not known and len(in_order) == len(cuts) > 1 and at == shape(source)[dim]
    return (dim, in_order) if complete else None


def _cuts(user: Node, source: Node) -> list[tuple[Node, int, Size]]:
    """The parts that one reader cuts off: each with its dimension and its first entry."""
    name = op(user)
    if name in ("slice", "narrow") and argument(user, "step", 1) == 1:
        dim = cast(int, argument(user, "dim", 0)) % rank(source)
        given = argument(user, "start", 0) or 0
        start = size_of(given.meta["val"] if isinstance(given, Node) else given)
        return [(user, dim, start + shape(source)[dim] if start.is_negative else start)]
    if name in ("split", "split_with_sizes"):
        dim = cast(int, argument(user, "dim", 0)) % rank(source)
        pieces = {cast(int, piece.args[1]): piece for piece in user.users}
        starts = [size_of(0)]
        for piece in user.meta["val"]:
            starts.append(starts[-1] + size_of(piece.shape[dim]))
        return [(piece, dim, starts[index]) for index, piece in pieces.items()]
    return []


def _cutter(part: Node, source: Node) -> Node:
    return part if source in part.all_input_nodes else cast(Node, part.args[0])


def _part(node: Node, start: Size) -> _Part | None:
    readers = [user for user in node.users if not reads_shape_only(user)]
    product = contraction(readers[0]) if len(readers) == 1 and is_tensor(readers[0]) else None
    if product is None or product.summed or node not in product.operands:
        return None
    side = product.operands.index(node)
    factor, labels = product.operands[1 - side], product.labels[1 - side]
    if product.labels[side] != product.out or product.out[-1] in labels or factor is node:
        return None
    return _Part(node, start, readers[0], factor, labels, product.out)


def _cut_behind(part: _Part, whole: Node, source: Node) -> None:
    """Let the readers of a part's product read that part of the whole one."""
    builder = GraphBuilder(source.graph, part.product)
    cutter = _cutter(part.node, source)
    args = [whole if arg is source else arg for arg in cutter.args]
    cut = builder.call(cast(torch._ops.OpOverload, cutter.target), *args, **cutter.kwargs)
    if cutter is not part.node:
        cut = builder.call(part.node.target, cut, part.node.args[1])  # type: ignore[arg-type]
    part.product.replace_all_uses_with(cut)

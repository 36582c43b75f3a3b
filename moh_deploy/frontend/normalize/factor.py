"""Products of slices, put together again, as one product.

Some models weigh shared and routed heads apart, or each head on its own, and concatenate:
`cat([y[:, :4] * a, y[:, 4:] * b])`. That is `y * cat([a, b])`, whatever `y` is; in that form the
gates of a layer are one tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.contraction import Labels, contraction
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, rank, shape
from moh_deploy.frontend.fx.slices import Slice, read_slice

aten = torch.ops.aten


@dataclass(frozen=True)
class _Part:
    """One operand of the concatenation: a slice, times a factor; a factor of None is 1."""

    slice: Slice
    factor: Node | None
    factor_labels: Labels
    labels: Labels


def factor_out_slices(builder: GraphBuilder, node: Node) -> Node | None:
    """Insert one product beside a `cat` or `stack` of products of slices, if it is that.

    Args:
        builder: Inserts in front of `node`.

    Returns:
        The product, or a view of the tensor that the slices are of; None for anything else.
    """
    operands = cast(Sequence[Node], node.args[0])
    known = [part for operand in operands if (part := _part(operand)) is not None]
    if len(known) < len(operands):
        return None
    slices, joined = [part.slice for part in known], argument(node, "dim", 0)
    # All slices have to be of one dimension of one tensor, in order, and all of it.
    source, dim = slices[0].source, slices[0].dim
    expected = 0
    for piece in slices:
        if (piece.source, piece.dim, piece.start) != (source, dim, expected):
            return None
        expected = piece.stop
    if shape(source)[dim] != expected:
        return None
    assert isinstance(joined, int)
    position = joined % rank(node)
    in_place = all(piece.keeps_dim for piece in slices) and slices[0].dim == position
    if all(part.factor is None for part in known):
        return _regrouped(builder, node, slices, position)
    if in_place and op(node) == "cat":
        factors = _factors(builder, known, position)
        if factors is None:
            return None
        gates = builder.call(aten.cat.default, factors, position)
        return builder.call(aten.mul.Tensor, slices[0].source, gates)
    factors = None
    if not any(piece.keeps_dim for piece in slices):
        factors = _factors(builder, known, None)
    if factors is None:
        return None
    # Single entries: stacked, or concatenated along the dimension that follows theirs.
    order = [axis for axis in range(rank(slices[0].source)) if axis != slices[0].dim]
    order.insert(position, slices[0].dim)
    whole = builder.call(aten.permute.default, slices[0].source, order)
    gates = builder.call(aten.stack.default, factors, position)
    product = builder.call(aten.mul.Tensor, whole, gates)
    if op(node) == "cat":
        return builder.call(aten.flatten.using_ints, product, position, position + 1)
    return product


def _regrouped(
    builder: GraphBuilder, node: Node, slices: Sequence[Slice], position: int
) -> Node | None:
    """All slices of a tensor in order, along another dimension: heads that go into the batch."""
    source, dim = slices[0].source, slices[0].dim
    lengths = {piece.stop - piece.start for piece in slices}
    keeps_dim = {piece.keeps_dim for piece in slices}
    if keeps_dim == {True} and op(node) == "cat" and position == dim:
        return source
    if len(lengths) > 1 or len(keeps_dim) > 1:
        return None
    # The slices [.., L, ..] are [.., n, L, ..] of the whole; n moves in front of `position`.
    order = [axis for axis in range(rank(source) + 1) if axis != dim]
    if keeps_dim == {True}:
        source = builder.call(aten.unflatten.int, source, dim, [len(slices), *lengths])
    else:
        order.pop()
    order.insert(position, dim)
    apart = builder.call(aten.permute.default, source, order)
    if op(node) == "stack":
        return apart
    return builder.call(aten.flatten.using_ints, apart, position, position + 1)


def _part(node: Node) -> _Part | None:
    alone = read_slice(node)
    if alone is not None:
        return _Part(alone, None, (), ())
    product = contraction(node)
    if product is None or product.summed:
        return None
    for side in (0, 1):
        found = read_slice(product.operands[side])
        if found is not None and product.labels[side] == product.out:
            other = 1 - side
            return _Part(found, product.operands[other], product.labels[other], product.out)
    return None


def _factors(
    builder: GraphBuilder, parts: Sequence[_Part], sliced: int | None
) -> list[Node] | None:
    """The factors with all dimensions of the product, spread along the sliced one."""
    aligned = [_aligned(builder, part) for part in parts]
    like = next(factor for factor in aligned if factor is not None)
    spread: list[Node] = []
    for part, factor in zip(parts, aligned, strict=True):
        length = part.slice.stop - part.slice.start
        node = builder.call(aten.ones_like.default, like) if factor is None else factor
        if sliced is not None and shape(node)[sliced] != length:
            node = builder.call(aten.slice.Tensor, node, sliced, 0, 1)
            extents = [length if axis == sliced else -1 for axis in range(rank(node))]
            node = builder.call(aten.expand.default, node, extents)
        spread.append(node)
    others = {tuple(e for axis, e in enumerate(shape(n)) if axis != sliced) for n in spread}
    return spread if len(others) == 1 else None


def _aligned(builder: GraphBuilder, part: _Part) -> Node | None:
    """Return a factor with its dimensions in the order of a product, size 1 for missing ones."""
    factor = part.factor
    if factor is None:
        return None
    for position in reversed(range(rank(factor))):
        if part.factor_labels[position] is None:
            factor = builder.call(aten.squeeze.dim, factor, position)
    places = [part.labels.index(label) for label in part.factor_labels if label is not None]
    order = sorted(range(len(places)), key=places.__getitem__)
    if order != sorted(order):
        factor = builder.call(aten.permute.default, factor, order)
    for position in range(len(part.labels)):
        if position not in places:
            factor = builder.call(aten.unsqueeze.default, factor, position)
    return factor


def is_joined(node: Node) -> bool:
    """True for a node that `factor_out_slices` may apply to."""
    if op(node) not in ("cat", "stack"):
        return False
    operands = node.args[0]
    return isinstance(operands, (list, tuple)) and all(is_tensor(operand) for operand in operands)

"""The weights that a product with values reads: a part of the softmax, and what was added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, flat, leaves, resolve
from moh_deploy.frontend.fx.builder import NotCoveredError, Operand
from moh_deploy.frontend.fx.contraction import Contraction, contraction
from moh_deploy.frontend.fx.elements import elements_of
from moh_deploy.frontend.fx.graph import argument, example_shape, is_tensor, named, op, rank, shape
from moh_deploy.frontend.fx.known_values import KnownValues, arranged, one_axis_a_dim
from moh_deploy.frontend.fx.views import backward, broadcast, casts, is_view
from moh_deploy.frontend.recognize.aggregated.peel import Peeled, Rows, peel
from moh_deploy.frontend.recognize.aggregated.windows import read_layout
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.walk import walk


@dataclass(frozen=True)
class Weights:
    """`softmax[positions] + query @ tokens + offset`."""

    positions: Tensor  # [L], place in the softmax of each column
    layout: Layout  # of the softmax, without the dimension that it normalises over
    tokens: tuple[Tokens, ...]
    offset: Tensor  # [H, L]; a size may be 1


@dataclass(frozen=True)
class Tokens:
    """A product of queries, whose head dimension is `head_dim`, and learned tokens [H, D, L]."""

    query: Peeled
    head_dim: Dim
    tokens: Tensor


class WeightReader:
    """Reads the weights of one layer."""

    def __init__(self, layer: MoHLayer, known: KnownValues) -> None:
        self._layer, self._known = layer, known

    def read(self, weights: Operand, columns: Dim) -> Weights:
        """Read the weights of one product with values."""
        parts: list[tuple[Tensor, Layout]] = []
        tokens: list[Tokens] = []
        offset = torch.zeros(1, 1, dtype=torch.float64)
        # w[window] + q' @ window_tokens + window_offset, in any order: the offset does not depend
        # on the input, the tokens are a product, and what remains is the softmax.
        for term in terms_of(weights):
            found = contraction(term.node)
            if not self._known.varies(term.node):
                value = self._known.over(term, (self._layer.heads, columns))
                if value is None:
                    raise NotCoveredError(
                        "what is added to the weights differs from pixel to pixel"
                    )
                offset = offset + value
            elif found is not None and found.summed:
                tokens.append(self._tokens(term, found, columns))
            else:
                parts.append(self._softmax_part(term, columns))
        if len(parts) != 1:
            raise NotCoveredError(f"the weights of a value add {len(parts)} softmax outputs up")
        return Weights(*parts[0], tuple(tokens), offset)

    def _tokens(self, term: Operand, found: Contraction, columns: Dim) -> Tokens:
        operands = _factors(found, term.layout)
        varying = [operand for operand in operands if self._known.varies(operand.node)]
        learned = [operand for operand in operands if not self._known.varies(operand.node)]
        if len(varying) != 1 or len(learned) != 1:
            raise NotCoveredError("the weights add a product that depends on the input twice")
        outside = set(flat(term.layout))
        head_dim = tuple(axis for axis in flat(learned[0].layout) if axis not in outside)
        heads, tokens = self._layer.heads, self._layer.tokens
        value = self._known.over(learned[0], (heads, head_dim, columns))
        if value is None:
            raise NotCoveredError("the tokens of the weights differ from pixel to pixel")
        query = peel(varying[0], Rows(heads, tokens, head_dim), self._known, is_query=True)
        return Tokens(query, head_dim, value)

    def _softmax_part(self, term: Operand, columns: Dim) -> tuple[Tensor, Layout]:
        softmax = self._layer.core.anchor
        elements = elements_of(term.node, self._known)
        source = None if elements is None else elements.source
        while source is not None and is_view(source) and casts(source):
            source = cast(Node, source.args[0])
        if elements is None or source is not softmax or not is_complete(term, self._layer):
            raise NotCoveredError(f"{named(term.node)} changes the attention weights")
        groups = (self._layer.batch, self._layer.heads, self._layer.tokens)
        index = arranged(elements.index, term.layout, (*groups, columns))  # [B, H, N, L]
        # A flat index of the softmax is (row in front, place in the softmax, row behind): `place`
        # is the column of the weight, `rows` is the index in the softmax without that dimension.
        dim = cast(int, argument(softmax, "dim", -1)) % rank(softmax)
        extents = example_shape(softmax)
        step = torch.Size(extents[dim + 1 :]).numel()
        place = index // step % extents[dim]
        rows = index // (step * extents[dim]) * step + index % step
        by_axis, axes = one_axis_a_dim(rows[..., 0], groups)
        others = [extent for other, extent in enumerate(shape(softmax)) if other != dim]
        count = torch.Size(extents).numel() // extents[dim]
        found = read_layout(by_axis, axes, others, count)
        # The same columns for every head and token, each from its own row.
        positions = place[0, 0, 0]
        regular = torch.equal(rows, rows[..., :1].expand_as(rows)) and torch.equal(
            place, positions.expand_as(place)
        )
        if found is None or found[1] or not regular or bool((index < 0).any()):
            raise NotCoveredError("the attention weights are in an order of their own")
        return positions, found[0]


# The sums and products between a joint softmax and the gates of its attention.


@dataclass(frozen=True)
class WeightedValues:
    """One product of attention weights with values."""

    weights: Operand
    value: Operand
    columns: Dim


def weighted_values(layer: MoHLayer) -> list[WeightedValues]:
    """The products whose sum is the attention of a layer before its gates."""
    # Forward from the softmax to the product with the gates: tells attention from gates where both
    # are factors of one product.
    carrying = set(
        walk(layer.core.anchor, lambda node: () if node is layer.node else tuple(node.users))
    )

    def carrier(factors: Sequence[object]) -> Node:
        found = [node for node in factors if isinstance(node, Node) and node in carrying]
        if len(found) != 1:
            raise NotCoveredError("the gates are computed from the attention")
        return found[0]

    # Backwards from gates * (w_window @ v_window + w_pooled @ v_pooled): past the gates, which are
    # all in `layer.gates`, to the sum, to its terms.
    node, layout = layer.node, resolve(layer.layout)
    while True:
        found = contraction(node)
        if is_view(node) and (step := backward(node, layout)) is not None:
            node, layout = step[0], resolve(step[1])
        elif op(node) == "where":
            node = carrier(node.args[1:3])
        elif found is not None and not found.summed:
            layouts = dict(zip(found.operands, found.operand_layouts(layout), strict=True))
            node = carrier(found.operands)
            layout = resolve(layouts[node])
        else:
            return [_product(term, layer) for term in terms_of(Operand(node, layout))]


def _factors(product: Contraction, layout: Layout) -> list[Operand]:
    layouts = map(resolve, product.operand_layouts(layout))
    return list(map(Operand, product.operands, layouts))


def with_token_axes(layer: MoHLayer) -> MoHLayer:
    """The layer with its batch and tokens told apart by the pooled values: all tokens share them.

    Without scores that MoHAttention can express, recognition takes the first axis for the batch.
    """
    try:
        # Windows of values have an axis for pixels, pooled values lack it: the axes that even
        # the smallest value has are the batch.
        values = [each.value for each in weighted_values(layer)]
    except NotCoveredError:
        return layer
    outer = (*layer.batch, *layer.tokens)
    shared = min((set(flat(value.layout)) for value in values), key=len)
    tokens = tuple(axis for axis in leaves(outer) if axis not in shared)
    batch = tuple(axis for axis in leaves(outer) if axis in shared)
    return replace(layer, batch=batch, tokens=tokens) if tokens else layer


def terms_of(operand: Operand) -> list[Operand]:
    """The terms of a sum, through views; the layout of a broadcast term lacks axes."""
    # A sum inside a sum, and views between the two, are one sum.
    node, layout = operand.node, resolve(operand.layout)
    if is_view(node) and (step := backward(node, layout)) is not None:
        return terms_of(Operand(*step))
    if op(node) == "add" and argument(node, "alpha", 1) == 1:
        sides = [arg for arg in node.args[:2] if isinstance(arg, Node) and is_tensor(arg)]
        aligned = [broadcast(side, layout) for side in sides]
        if len(sides) == 2 and None not in aligned:
            return [
                term
                for side, own in zip(sides, cast(list[Layout], aligned), strict=True)
                for term in terms_of(Operand(side, own))
            ]
    return [Operand(node, layout)]


def is_complete(term: Operand, layer: MoHLayer) -> bool:
    """True for a tensor with something of its own for each head of each token."""
    every = {*layer.batch, *layer.heads, *layer.tokens}
    return set(leaves(every)) <= set(flat(term.layout))


def _product(term: Operand, layer: MoHLayer) -> WeightedValues:
    found = contraction(term.node)
    if found is None or not found.summed or not is_complete(term, layer):
        raise NotCoveredError(f"{named(term.node)} between the attention and its gates")
    # weights [B, H, N, L] and values [B, H, N, L, D]: only the values have the head dimension.
    first, second = _factors(found, term.layout)
    head_dim = set(leaves(layer.core.value_axes))
    weighs = not head_dim & set(flat(first.layout))
    weights, value = (first, second) if weighs else (second, first)
    if head_dim & set(flat(weights.layout)):
        raise NotCoveredError("the attention weights differ along the head dimension")
    outside = set(flat(term.layout))
    columns = tuple(axis for axis in flat(weights.layout) if axis not in outside)
    return WeightedValues(weights, value, columns)

"""The sums and products between a joint softmax and the gates of its attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, flat, leaves, resolve
from moh_deploy.frontend.fx.builder import NotCoveredError, Operand
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import argument, is_tensor, named, op
from moh_deploy.frontend.fx.views import backward, broadcast, is_view
from moh_deploy.frontend.recognize.layer import MoHLayer


@dataclass(frozen=True)
class WeightedValues:
    """One product of attention weights with values.

    Attributes:
        weights: Every head's weights for each token.
        value: What they weigh.
        columns: The axes that are summed over.
    """

    weights: Operand
    value: Operand
    columns: Dim


def weighted_values(layer: MoHLayer) -> list[WeightedValues]:
    """The products whose sum is the attention of a layer before its gates.

    Raises:
        NotCoveredError: With the reason.
    """
    # Backwards from gates * (w_window @ v_window + w_pooled @ v_pooled): past the gates, to the
    # sum, to its terms.
    carrying = _carriers(layer)
    attention = _before_gates(layer, carrying)
    return [_product(term, layer) for term in terms_of(attention)]


def with_token_axes(layer: MoHLayer) -> MoHLayer:
    """The layer with its batch and tokens told apart by the pooled values: all tokens share them.

    Without scores that MoHAttention can express, recognition takes the first axis for the batch.
    """
    try:
        # Windows of values have an axis for pixels, pooled values have none: the axes that even
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


def _carriers(layer: MoHLayer) -> set[Node]:
    """Tensors that are computed from the layer's softmax, up to its product with the gates."""
    # Forward: tells attention from gates where both are factors of one product.
    seen, stack = {layer.core.anchor}, [layer.core.anchor]
    while stack:
        current = stack.pop()
        if current is layer.node:
            continue
        fresh = [user for user in current.users if user not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return seen


def _before_gates(layer: MoHLayer, carrying: set[Node]) -> Operand:
    """The attention that the gates are multiplied with; all of them are in `layer.gates`."""
    node, layout = layer.node, resolve(layer.layout)
    while True:
        found = contraction(node)
        if is_view(node) and (step := backward(node, layout)) is not None:
            node, layout = step[0], resolve(step[1])
        elif op(node) == "where":
            node = _the_carrier(node.args[1:3], carrying)
        elif found is not None and not found.summed:
            layouts = dict(zip(found.operands, found.operand_layouts(layout), strict=True))
            node = _the_carrier(found.operands, carrying)
            layout = resolve(layouts[node])
        else:
            return Operand(node, layout)


def _the_carrier(candidates: tuple[object, ...], carrying: set[Node]) -> Node:
    found = [node for node in candidates if isinstance(node, Node) and node in carrying]
    if len(found) != 1:
        raise NotCoveredError("the gates are computed from the attention")
    return found[0]


def _product(term: Operand, layer: MoHLayer) -> WeightedValues:
    found = contraction(term.node)
    if found is None or not found.summed or not is_complete(term, layer):
        raise NotCoveredError(f"{named(term.node)} between the attention and its gates")
    # weights [B, H, N, L] and values [B, H, N, L, D]: only the values have the head dimension.
    first, second = (
        Operand(node, resolve(layout))
        for node, layout in zip(found.operands, found.operand_layouts(term.layout), strict=True)
    )
    head_dim = set(leaves(layer.core.value_axes))
    weighs = not head_dim & set(flat(first.layout))
    weights, value = (first, second) if weighs else (second, first)
    if head_dim & set(flat(weights.layout)):
        raise NotCoveredError("the attention weights differ along the head dimension")
    outside = set(flat(term.layout))
    columns = tuple(axis for axis in flat(weights.layout) if axis not in outside)
    return WeightedValues(weights, value, columns)

"""Scores of attention that is written out: softmax(q @ k * scale + mask)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, leaves, resolve
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import argument, is_tensor, named, op, tensor, tensor_inputs
from moh_deploy.frontend.fx.known_values import is_random
from moh_deploy.frontend.fx.views import backward, is_view, lacks, operand_layout
from moh_deploy.frontend.recognize.cores.binary import Constant, Number, is_binary, value_where
from moh_deploy.frontend.recognize.layer import Factor, MaskTerm, Scores

# A fill below this hides a score as well as minus infinity does: exp() of it is 0 in every dtype.
HIDING_FILL = -1e4
JOINT_SOFTMAX = "one softmax spans several products of queries and keys"

ReadConstant = Callable[[Node], torch.Tensor | None]


@dataclass
class ScoreReader:
    """Walks from a softmax back to the product of query and key, collecting what happens on the
    way.

    Args:
        dynamic: Nodes whose values depend on the model's inputs.
        constant: Value of a constant node, or None where it is not a constant.
    """

    dynamic: set[Node]
    constant: ReadConstant
    _scale: float = field(default=1.0, init=False)
    _factors: list[Factor] = field(default_factory=list, init=False)
    _masks: list[MaskTerm] = field(default_factory=list, init=False)
    _products: set[Node] = field(default_factory=set, init=False)

    def read(self, scores: Node, layout: Layout, key_axes: Dim) -> Scores | str:
        """Return the scores, or the reason why they are not query @ key with scale and masks."""
        self._scale, self._factors, self._masks = 1.0, [], []
        self._products = self.products_of(scores)
        # From the softmax backwards: scores = scale * factors * (query @ key) + masks, whatever the
        # order in which they were applied. A scale that comes later (is undone earlier) scales the
        # masks before it, too: `_scale` is what stands in front of the part that is still to read.
        node: Node | None = scores
        while node is not None:
            product = self._product(node, layout, key_axes)
            if product is not None:
                query, key = product
                return Scores(
                    query, key, key_axes, self._scale, tuple(self._factors), tuple(self._masks)
                )
            step = self._step(node, layout, key_axes)
            if isinstance(step, str):
                return step
            node, layout = step
        return "the softmax is not over products of queries and keys"

    def _product(self, node: Node, layout: Layout, key_axes: Dim) -> tuple[Operand, Operand] | None:
        found = contraction(node)
        if found is None or node not in self._products:
            return None
        first, second = (
            Operand(operand, operand_layout)
            for operand, operand_layout in zip(
                found.operands, found.operand_layouts(layout), strict=True
            )
        )
        # The operand with the softmax's axis has the keys, wherever it stands in the product.
        first_is_key = not lacks(first.layout, key_axes)
        second_is_key = not lacks(second.layout, key_axes)
        if first_is_key == second_is_key:
            return None
        return (second, first) if first_is_key else (first, second)

    def _step(self, node: Node, layout: Layout, key_axes: Dim) -> tuple[Node, Layout] | str:
        """Undo one operation between the product and the softmax."""
        name = op(node)
        if is_view(node):
            return backward(node, layout) or f"{named(node)} reshapes the scores"
        if name in ("add", "sub", "subtract"):
            return self._undo_add(node, layout)
        if name in ("mul", "multiply", "div", "divide", "true_divide"):
            return self._undo_scale(node, layout, key_axes)
        if name == "masked_fill":
            mask, fill = cast(Node, node.args[1]), self.number(node.args[2])
            return self._undo_fill(node, cast(Node, node.args[0]), mask, fill, "drop", layout)
        if name == "where":
            return self._undo_where(node, layout)
        if name in ("cat", "stack"):
            return self._joined(node)
        return (
            f"{named(node)} stands between the scores and their softmax, which no MoH op computes"
        )

    def _joined(self, node: Node) -> str:
        products = [source for source in tensor_inputs(node) if self.leads_to_product(source)]
        if len(products) > 1:
            return JOINT_SOFTMAX
        return (
            f"{named(node)} joins the scores with others that are no products with keys (a sink),"
            " which no MoH op computes"
        )

    def _undo_add(self, node: Node, layout: Layout) -> tuple[Node, Layout] | str:
        path, other, position = self._split(node)
        if path is None:
            return "the softmax is not over products of queries and keys"
        # torch: add(a, b, alpha) = a + alpha * b, where `position` says which one is the scores.
        alpha = self.number(argument(node, "alpha", 1)) or 1.0
        sign = -alpha if op(node) in ("sub", "subtract") else alpha
        if position == 1 and sign != 1:
            return f"{named(node)} subtracts the scores"
        if isinstance(other, Node) and is_tensor(other):
            aligned = operand_layout(other, layout)
            weight = sign * self._scale
            # The op scales the query by factors, then adds the bias; the other order differs.
            if self._factors:
                return "a tensor scales the scores after a bias was added"
            self._masks.append(MaskTerm(Operand(other, aligned), "add", weight))
        return path, layout  # a number added to all scores changes no softmax

    def _undo_scale(self, node: Node, layout: Layout, key_axes: Dim) -> tuple[Node, Layout] | str:
        path, other, position = self._split(node)
        if path is None:
            return "the softmax is not over products of queries and keys"
        divides = op(node) not in ("mul", "multiply")
        if divides and position == 1:
            return f"{named(node)} divides by the scores"
        number = self.number(other)
        if number is not None:
            self._scale *= 1 / number if divides else number
            return path, layout
        if not (isinstance(other, Node) and is_tensor(other)):
            return f"{named(node)} scales the scores by a size"
        aligned = operand_layout(other, layout)
        factor = Operand(other, aligned)
        # What differs from key to key cannot move to the query: only a mask may do that.
        if not lacks(aligned, key_axes):
            return self._undo_mask(node, factor, divides=divides) or (path, layout)
        self._factors.append(Factor(factor, divides))
        return path, layout

    def _undo_mask(self, node: Node, mask: Operand, *, divides: bool) -> str | None:
        """`scores * mask - large * (1 - mask)` keeps the scores where the mask is 1.

        Returns:
            The reason why this is something else; None if it is that.
        """
        if divides or not is_binary(mask.node, self.constant):
            return (
                f"{named(node)} scales the scores differently for each key (if by a mask of 0 and"
                " 1, compute it as a bool and use masked_fill or torch.where)"
            )
        for position, term in enumerate(self._masks):
            if term.kind != "add":
                continue
            # kept - hidden is how far the added term pushes masked scores below the others.
            kept, hidden = (
                value_where(term.operand, mask, name, self.number) for name in (True, False)
            )
            if kept is None or hidden is None:
                continue
            fill = (hidden - kept) * term.value
            if fill <= HIDING_FILL:
                del self._masks[position]
                self._masks.append(MaskTerm(mask, "keep", fill))
                return None
        return (
            f"{named(node)} makes masked scores 0, and no large negative number that hides them"
            " is added (use masked_fill)"
        )

    def _undo_where(self, node: Node, layout: Layout) -> tuple[Node, Layout] | str:
        condition, chosen, rejected = cast(tuple[Node, object, object], node.args[:3])
        for kind, path, fill in (("keep", chosen, rejected), ("drop", rejected, chosen)):
            if isinstance(path, Node) and self.leads_to_product(path):
                return self._undo_fill(node, path, condition, self.number(fill), kind, layout)
        return "the softmax is not over products of queries and keys"

    def _undo_fill(
        self, node: Node, path: Node, mask: Node, fill: float | None, kind: str, layout: Layout
    ) -> tuple[Node, Layout] | str:
        # Scores that are filled before they are scaled hide only if the scaled fill does.
        if fill is None or fill * self._scale > HIDING_FILL:
            return (
                f"{named(node)} fills masked scores with {fill}, not with a large negative number"
            )
        operand = Operand(mask, operand_layout(mask, layout))
        self._masks.append(
            MaskTerm(operand, "keep" if kind == "keep" else "drop", fill * self._scale)
        )
        return path, layout

    def _split(self, node: Node) -> tuple[Node | None, object, int]:
        """The operand that leads to query @ key, the other one, and the position of the first."""
        for position in (0, 1):
            candidate = node.args[position]
            if isinstance(candidate, Node) and self.leads_to_product(candidate):
                return candidate, node.args[1 - position], position
        return None, None, 0

    def products_of(self, scores: Node) -> set[Node]:
        """Return the products of queries and keys that scores are made of.

        Beside those of two tensors that depend on inputs, others are biases that a query meets. On
        their own they are products with learned queries or keys, if each sequence or head has some
        of its own: one matrix for all is a linear map, such as that of a router.
        """
        found = {node: contraction(node) for node in elementwise_sources(scores)}
        products = {node: product for node, product in found.items() if product and product.summed}
        computed = {
            node
            for node, product in products.items()
            if all(operand in self.dynamic for operand in product.operands)
        }
        return computed or {node for node, product in products.items() if product.batch}

    def leads_to_product(self, node: Node) -> bool:
        return any(source in self._products for source in elementwise_sources(node))

    def number(self, value: object) -> float | None:
        """The number that a value stands for, known before the model runs; None if it is none."""
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, Node) and is_tensor(value):
            return self._constant_number(value)
        return None

    def _constant_number(self, node: Node) -> float | None:
        """A tensor of equal elements that is known before the model runs."""
        if op(node) in ("zeros", "zeros_like", "new_zeros"):
            return 0.0
        if op(node) in ("ones", "ones_like", "new_ones"):
            return 1.0
        if op(node) in ("full", "full_like", "scalar_tensor", "new_full"):
            fill = node.args[0] if op(node) == "scalar_tensor" else argument(node, "fill_value")
            return float(fill) if isinstance(fill, (int, float)) else None
        if is_view(node) or op(node) in ("expand", "expand_as"):
            return self._constant_number(cast(Node, node.args[0]))
        known = self.constant(node)
        return float(known) if known is not None and known.numel() == 1 else None


def elementwise_sources(node: Node) -> Iterator[Node]:
    """Yield what feeds a node through views and element-wise operators, down to products."""
    seen, stack = {node}, [node]
    while stack:
        current = stack.pop()
        yield current
        found = contraction(current)
        if found is not None and found.summed:
            continue
        if not (is_view(current) or op(current) in _ELEMENTWISE):
            continue
        for source in current.all_input_nodes:
            if source not in seen and is_tensor(source):
                seen.add(source)
                stack.append(source)


_ARITHMETIC = ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "neg")
_ELEMENTWISE = frozenset(
    (*_ARITHMETIC, "masked_fill", "where", "cat", "stack", "tanh", "clamp", "exp")
)


def key_axes_of(softmax: Node, layout: Layout) -> Dim:
    dim = argument(softmax, "dim", -1)
    assert isinstance(dim, int)
    return leaves(layout[dim % len(layout)])


# Attention weights that are set to 0 behind the softmax, by the mask that the scores met before.
#
# `softmax(scores.masked_fill(mask, -1e9)).masked_fill(mask, 0)`: the weights are 0 there already,
# but in a row that sees no key at all, which has equal weights (or NaN). Such a row is 0 in the
# end: that is what a bool mask means to MoHAttention.


def zeroed(scores: Scores, kept: Operand, constant: Constant, number: Number) -> Scores | None:
    """Return the scores of weights that are 0 wherever `kept` is; None if they were not masked so.

    Args:
        kept: True, or 1, where weights stay as they are, in the axes of the scores.
        constant: Value of a constant node.
        number: The number that an argument stands for.
    """
    if not is_binary(kept.node, constant):
        return None
    mask = _truth(kept)
    for position, term in enumerate(scores.masks):
        if _hides_where_zero(term, mask, constant, number):
            hard = MaskTerm(kept, "keep", -math.inf)
            others = (*scores.masks[:position], *scores.masks[position + 1 :])
            return replace(scores, masks=(hard, *others))
    return None


@dataclass(frozen=True)
class _Truth:
    """A bool tensor as the one that it is made of.

    Attributes:
        negated: True where it is false.
    """

    node: Node
    layout: Layout
    negated: bool


def _truth(operand: Operand) -> _Truth:
    node, layout, negated = operand.node, resolve(operand.layout), False
    while True:
        step = backward(node, layout)
        source = node.args[0] if node.args else None
        if step is not None and _keeps_truth(step[0], node):
            node, layout = step[0], resolve(step[1])
        elif _is_complement(node) and isinstance(source, Node):
            node, negated = source, not negated
        else:
            return _Truth(node, layout, negated)


def _keeps_truth(source: Node, view: Node) -> bool:
    """True for a view that is true where its source is: a cast to whole numbers may not be."""
    before, after = tensor(source).dtype, tensor(view).dtype
    return before == after or torch.bool in (before, after)


def _is_complement(node: Node) -> bool:
    if op(node) == "eq":
        return isinstance(node.args[1], (int, float)) and node.args[1] == 0
    inverts = op(node) == "bitwise_not" and tensor(node).dtype == torch.bool
    return inverts or op(node) == "logical_not"


def _hides_where_zero(term: MaskTerm, mask: _Truth, constant: Constant, number: Number) -> bool:
    """True where a term hides the very keys at which a mask is 0."""
    if term.kind != "add":
        own = _truth(term.operand)
        same = _is_equal(own.node, mask.node) and own.layout == mask.layout
        return same and own.negated == (mask.negated != (term.kind == "drop"))
    # scores + (1 - mask) * -1e9, of a mask that is 0 or 1
    operand = Operand(mask.node, mask.layout)
    if not is_binary(mask.node, constant):
        return False
    kept, hidden = (
        value_where(term.operand, operand, is_one != mask.negated, number)
        for is_one in (True, False)
    )
    if kept is None or hidden is None:
        return False
    return (hidden - kept) * term.value <= HIDING_FILL


def _is_equal(a: Node, b: Node, depth: int = 8) -> bool:
    """True for one tensor, or for one that is computed twice in the same few steps."""
    if a is b:
        return True
    alike = a.op == b.op == "call_function" and a.target is b.target and a.kwargs == b.kwargs
    if not alike or is_random(a) or not depth or len(a.args) != len(b.args):
        return False
    return all(
        _is_equal(x, y, depth - 1) if isinstance(x, Node) and isinstance(y, Node) else x == y
        for x, y in zip(a.args, b.args, strict=True)
    )

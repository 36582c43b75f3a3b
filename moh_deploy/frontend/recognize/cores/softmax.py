"""Scores of attention that is written out: softmax(q @ k * scale + mask)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, resolve
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import argument, is_tensor, named, op, tensor, tensor_inputs
from moh_deploy.frontend.fx.known_values import is_random
from moh_deploy.frontend.fx.views import backward, is_view, lacks, operand_layout
from moh_deploy.frontend.recognize.cores.binary import (
    Constant,
    Number,
    calculated,
    is_binary,
    value_where,
)
from moh_deploy.frontend.recognize.layer import Factor, MaskTerm, Scores

# A fill below this hides a score as well as minus infinity does: exp() of it is 0 in every dtype.
HIDING_FILL = -1e4
_NO_PRODUCT = "the softmax is not over products of queries and keys"
JOINT_SOFTMAX = "one softmax spans several products of queries and keys"
_ALL_COMPUTED = "the layer computes its closed heads, too"
_INSTEAD_OF_A_CAP = "; an op skips them if a norm of queries and keys is trained instead"

ReadConstant = Callable[[Node], torch.Tensor | None]


@dataclass
class ScoreReader:
    """Walks from a softmax back to the product of query and key, collecting what happens on the
    way.
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
        return _NO_PRODUCT

    def _product(self, node: Node, layout: Layout, key_axes: Dim) -> tuple[Operand, Operand] | None:
        found = contraction(node)
        if found is None or node not in self._products:
            return None
        # [B, H, S, D] @ [B, H, D, keys]: the operand with the softmax's axis has the keys, wherever
        # it stands in the product.
        first, second = map(Operand, found.operands, found.operand_layouts(layout))
        first_is_key = not lacks(first.layout, key_axes)
        if first_is_key != lacks(second.layout, key_axes):
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
            return self._undo_fill(node, *node.args[:3], kind="drop", layout=layout)
        if name == "where":
            condition, chosen, rejected = cast(tuple[Node, object, object], node.args[:3])
            if self.leads_to_product(chosen):
                return self._undo_fill(
                    node, chosen, condition, rejected, kind="keep", layout=layout
                )
            if self.leads_to_product(rejected):
                return self._undo_fill(
                    node, rejected, condition, chosen, kind="drop", layout=layout
                )
            return _NO_PRODUCT
        if name in ("cat", "stack"):
            if len([source for source in tensor_inputs(node) if self.leads_to_product(source)]) > 1:
                return JOINT_SOFTMAX
            return (
                f"{named(node)} joins the scores with others that are no products with keys (a"
                f" sink), which no MoH op computes: {_ALL_COMPUTED}; a first key and value of zeros"
                " with the sink as a bias give the same result in an op that skips them"
            )
        remedy = _INSTEAD_OF_A_CAP if name in ("tanh", "clamp") else ""
        return (
            f"{named(node)} stands between the scores and their softmax, which no MoH op computes:"
            f" {_ALL_COMPUTED}{remedy}"
        )

    def _undo_add(self, node: Node, layout: Layout) -> tuple[Node, Layout] | str:
        path, other, position = self._split(node)
        if path is None:
            return _NO_PRODUCT
        # torch: add(a, b, alpha) = a + alpha * b, where `position` says which one is the scores.
        alpha = self.number(argument(node, "alpha", 1)) or 1.0
        sign = -alpha if op(node) in ("sub", "subtract") else alpha
        if position == 1 and sign != 1:
            return f"{named(node)} subtracts the scores"
        if isinstance(other, Node) and is_tensor(other):
            # The op scales the query by factors, then adds the bias; the other order differs.
            if self._factors:
                return "a tensor scales the scores after a bias was added"
            bias = Operand(other, operand_layout(other, layout))
            self._masks.append(MaskTerm(bias, "add", sign * self._scale))
        return path, layout  # a number added to all scores changes no softmax

    def _undo_scale(self, node: Node, layout: Layout, key_axes: Dim) -> tuple[Node, Layout] | str:
        path, other, position = self._split(node)
        if path is None:
            return _NO_PRODUCT
        divides = op(node) not in ("mul", "multiply")
        if divides and position == 1:
            return f"{named(node)} divides by the scores"
        number = self.number(other)
        if number is not None:
            self._scale *= 1 / number if divides else number
            return path, layout
        if not (isinstance(other, Node) and is_tensor(other)):
            return f"{named(node)} scales the scores by a size"
        factor = Operand(other, operand_layout(other, layout))
        # What differs from key to key cannot move to the query: only a mask may do that.
        if not lacks(factor.layout, key_axes):
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
            fill = _fill_of(term, mask, self.number) if term.kind == "add" else None
            if fill is not None and fill <= HIDING_FILL:
                del self._masks[position]
                self._masks.append(MaskTerm(mask, "keep", fill))
                return None
        return (
            f"{named(node)} makes masked scores 0, and no large negative number that hides them"
            " is added (use masked_fill)"
        )

    def _undo_fill(
        self,
        node: Node,
        path: object,
        mask: object,
        filled: object,
        *,
        kind: Literal["keep", "drop"],
        layout: Layout,
    ) -> tuple[Node, Layout] | str:
        fill = self.number(filled)
        # Scores that are filled before they are scaled hide only if the scaled fill does.
        if fill is None or fill * self._scale > HIDING_FILL:
            text = "a tensor" if fill is None else f"{fill}"
            return (
                f"{named(node)} fills masked scores with {text}, not with a large negative number"
            )
        operand = Operand(cast(Node, mask), operand_layout(cast(Node, mask), layout))
        self._masks.append(MaskTerm(operand, kind, fill * self._scale))
        return cast(Node, path), layout

    def _split(self, node: Node) -> tuple[Node | None, object, int]:
        """The operand that leads to query @ key, the other one, and the position of the first."""
        for position in (0, 1):
            candidate = node.args[position]
            if self.leads_to_product(candidate):
                return cast(Node, candidate), node.args[1 - position], position
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

    def leads_to_product(self, node: object) -> bool:
        return isinstance(node, Node) and not self._products.isdisjoint(elementwise_sources(node))

    def number(self, value: object) -> float | None:
        """Return the number that a value stands for before the model runs, or None."""
        if isinstance(value, (int, float)):
            return float(value)
        if not isinstance(value, Node) or not is_tensor(value):
            return None
        # A tensor of equal elements.
        name = op(value)
        if name in ("zeros", "zeros_like", "new_zeros"):
            return 0.0
        if name in ("ones", "ones_like", "new_ones"):
            return 1.0
        if name in ("full", "full_like", "scalar_tensor", "new_full"):
            fill = value.args[0] if name == "scalar_tensor" else argument(value, "fill_value")
            return float(fill) if isinstance(fill, (int, float)) else None
        if is_view(value) or name in ("expand", "expand_as"):
            return self.number(value.args[0])
        known = self.constant(value)
        if known is not None:
            return float(known) if known.numel() == 1 else None
        return calculated(value, self.number)  # ones_like(scores) * (1 - 2**32)


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


# Attention weights that are set to 0 behind the softmax, by the mask that the scores met before:
# `softmax(scores.masked_fill(mask, -1e9)).masked_fill(mask, 0)`: the weights are 0 there already,
# but in a row that sees no key at all, which has equal weights (or NaN). Such a row is 0 in the
# end: that is what a bool mask means to MoHAttention.


def zeroed(scores: Scores, kept: Operand, constant: Constant, number: Number) -> Scores | None:
    """Return the scores of weights that are 0 wherever `kept` is; None if they were not masked so.

    Args:
        kept: True, or 1, where weights stay as they are, in the axes of the scores.
    """
    if not is_binary(kept.node, constant):
        return None
    mask, negated = _truth(kept)
    for position, term in enumerate(scores.masks):
        if term.kind == "add":
            # scores + (1 - mask) * -1e9, of a mask that is 0 or 1
            binary = is_binary(mask.node, constant)
            fill = _fill_of(term, mask, number, negated=negated) if binary else None
            hides = fill is not None and fill <= HIDING_FILL
        else:
            own, is_negated = _truth(term.operand)
            same = _is_equal(own.node, mask.node) and own.layout == mask.layout
            hides = same and is_negated == (negated != (term.kind == "drop"))
        if hides:
            hard = MaskTerm(kept, "keep", -math.inf)
            others = (*scores.masks[:position], *scores.masks[position + 1 :])
            return replace(scores, masks=(hard, *others))
    return None


def _fill_of(
    term: MaskTerm, mask: Operand, number: Number, *, negated: bool = False
) -> float | None:
    """How far an added term pushes masked scores below the others; None if it is no such term."""
    kept, hidden = (
        value_where(term.operand, mask, is_kept != negated, number) for is_kept in (True, False)
    )
    return None if kept is None or hidden is None else (hidden - kept) * term.value


def _truth(operand: Operand) -> tuple[Operand, bool]:
    """A bool tensor as the one that it is made of, and whether it is true where that is false."""
    node, layout, negated = operand.node, resolve(operand.layout), False
    while True:
        step = backward(node, layout)
        source = node.args[0] if node.args else None
        # A view is true where its source is; a cast to whole numbers may not be.
        dtypes = () if step is None else (tensor(step[0]).dtype, tensor(node).dtype)
        inverts = op(node) == "logical_not"
        inverts |= op(node) == "bitwise_not" and tensor(node).dtype == torch.bool
        if op(node) == "eq":
            inverts = isinstance(node.args[1], (int, float)) and node.args[1] == 0
        if step is not None and (len(set(dtypes)) == 1 or torch.bool in dtypes):
            node, layout = step[0], resolve(step[1])
        elif inverts and isinstance(source, Node):
            node, negated = source, not negated
        else:
            return Operand(node, layout), negated


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

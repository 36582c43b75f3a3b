"""Attention weights that are set to 0 behind the softmax, by the mask that the scores met before.

`softmax(scores.masked_fill(mask, -1e9)).masked_fill(mask, 0)`: the weights are 0 there already, but
in a row that sees no key at all, which has equal weights (or NaN). Such a row is 0 in the end: that
is what a bool mask means to MoHAttention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout, resolve
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.constants import is_random
from moh_deploy.frontend.fx.graph import op, tensor
from moh_deploy.frontend.fx.views import backward
from moh_deploy.frontend.recognize.cores.binary import Constant, Number, is_binary, value_where
from moh_deploy.frontend.recognize.cores.core import MaskTerm, Scores
from moh_deploy.frontend.recognize.cores.softmax import HIDING_FILL


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

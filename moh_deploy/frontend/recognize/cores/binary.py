"""Masks that scores are multiplied with: tensors of 0 and 1, and what is computed of them alone."""

from collections.abc import Callable
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout, resolve
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, tensor, tensor_inputs
from moh_deploy.frontend.fx.views import backward, broadcast, history, is_view

Constant = Callable[[Node], torch.Tensor | None]
Number = Callable[[object], float | None]

_ZERO_OR_ONE = frozenset(
    ["ones", "ones_like", "new_ones", "zeros", "zeros_like", "new_zeros", "eye"]
)
_FULL = frozenset(["full", "full_like", "new_full"])
# Of zeros and ones, these make zeros and ones.
_MOVES = frozenset(
    ["tril", "triu", "cat", "stack", "index", "slice", "select", "narrow"]
    + ["expand", "expand_as", "repeat", "tile", "repeat_interleave"]
)
_PRODUCTS = frozenset(["mul", "multiply", "minimum", "maximum"])
_ARITHMETIC = frozenset(
    ["add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "neg"]
    + ["negative", "logical_not"]
)


def is_binary(node: Node, constant: Constant) -> bool:
    """True for a tensor that is known to hold nothing but 0 and 1, whatever the inputs are."""
    if tensor(node).dtype == torch.bool:
        return True
    stored = constant(node)
    if stored is not None:
        return bool(((stored == 0) | (stored == 1)).all())
    name = op(node)
    if name in _ZERO_OR_ONE:
        return True
    if name in _FULL:
        return argument(node, "fill_value") in (0, 1)
    # rsub(mask, 1) = 1 - mask
    if name == "rsub":
        is_complement = argument(node, "other") == 1 and argument(node, "alpha", 1) == 1
        return bool(is_complement) and is_binary(cast(Node, node.args[0]), constant)
    if name in _PRODUCTS:
        sources = node.args[:2]
    elif name == "index" or is_view(node):
        sources = node.args[:1]
    else:
        sources = tensor_inputs(node) if name in _MOVES else ()
    return bool(sources) and all(
        is_tensor(source) and is_binary(cast(Node, source), constant) for source in sources
    )


def value_where(operand: Operand, mask: Operand, is_kept: bool, number: Number) -> float | None:
    """The value that a tensor has wherever a mask is 1, or 0; None if it is made of more."""
    # scores * mask - 1e4 * (1 - mask): the addend is 0 where the mask is 1, and -1e4 where it is 0.
    masks = history(mask.node, mask.layout)

    def value(node: Node, layout: Layout) -> float | None:
        if (node, layout) in masks:
            return float(is_kept)
        step = backward(node, layout)
        if step is not None:
            return value(step[0], resolve(step[1]))

        def of_operand(arg: object) -> float | None:
            found = number(arg)
            if found is None and isinstance(arg, Node) and is_tensor(arg):
                aligned = broadcast(arg, layout)
                found = None if aligned is None else value(arg, aligned)
            return found

        return calculated(node, of_operand)

    return value(operand.node, resolve(operand.layout))


def calculated(node: Node, number: Number) -> float | None:
    """Compute an arithmetic operator on numbers; None for other operators and operands."""
    name = "logical_not" if op(node) == "bitwise_not" else op(node)
    if name not in _ARITHMETIC or len(node.args) > 2:
        return None
    values = [number(arg) for arg in node.args]
    if None in values:
        return None
    # By torch itself, so that `alpha` and the order of operands mean what they mean there.
    operands = [torch.tensor(value, dtype=torch.float64) for value in values]
    return float(getattr(torch, name)(*operands, **node.kwargs))

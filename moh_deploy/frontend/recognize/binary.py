"""Masks that scores are multiplied with: tensors of 0 and 1, and what is computed of them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.recognize.axes import Layout, resolve
from moh_deploy.frontend.recognize.cores.core import Operand
from moh_deploy.frontend.recognize.graph import argument, is_tensor, op, tensor, tensor_inputs
from moh_deploy.frontend.recognize.views import backward, broadcast, history, is_view

Constant = Callable[[Node], torch.Tensor | None]
Number = Callable[[object], float | None]

_ZERO_OR_ONE = frozenset(
    [*(f"{form}{value}" for form in ("", "new_") for value in ("ones", "zeros")), "eye"]
    + ["ones_like", "zeros_like"]
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
        is_tensor(one) and is_binary(cast(Node, one), constant) for one in sources
    )


def value_where(operand: Operand, mask: Operand, is_kept: bool, number: Number) -> float | None:
    """The value that a tensor has wherever a mask is 1, or 0; None if it is made of more.

    Args:
        number: The number that an argument stands for.
    """
    origins = history(mask.node, mask.layout)
    return _value(operand.node, resolve(operand.layout), origins, (float(is_kept), number))


def _value(
    node: Node,
    layout: Layout,
    origins: Sequence[tuple[Node, Layout]],
    given: tuple[float, Number],
) -> float | None:
    if (node, layout) in origins:
        return given[0]
    step = backward(node, layout)
    if step is not None:
        return _value(step[0], resolve(step[1]), origins, given)
    name = "logical_not" if op(node) == "bitwise_not" else op(node)
    if name not in _ARITHMETIC or len(node.args) > 2:
        return None
    values: list[torch.Tensor] = []
    for arg in node.args:
        found = given[1](arg)
        if found is None and is_tensor(arg):
            source = cast(Node, arg)
            aligned = broadcast(source, layout)
            found = None if aligned is None else _value(source, aligned, origins, given)
        if found is None:
            return None
        values.append(torch.tensor(found, dtype=torch.float64))
    operator = getattr(torch, name)
    return float(operator(*values, **node.kwargs))

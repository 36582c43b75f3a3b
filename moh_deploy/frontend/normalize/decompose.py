"""Operators that do several things at once, written out: what recognition reads is single products.

An einsum of many tensors is a row of einsums of two; `baddbmm` and `addcmul` are products and a
sum; `masked_fill` with 0 is a choice by a mask of what is kept; `expand_as` is an expansion to a
size, and reads nothing else of the other tensor; so is `repeat_interleave` by a dynamic size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.contraction import Contraction, Labels, contraction
from moh_deploy.frontend.fx.graph import argument, op, rank, shape, tensor

aten = torch.ops.aten

_PRODUCTS = frozenset(["einsum", "matmul", "bmm"])


def decompose(builder: GraphBuilder, node: Node) -> None:
    """Let simpler operators take over from a node, if it does several things at once.

    Args:
        builder: Inserts in front of `node`.
    """
    if op(node) == "einsum":
        _pair_up(builder, node)
    elif op(node) == "masked_fill" and node.args[2] == 0:
        _keep_instead(builder, node)
    elif op(node) == "baddbmm":
        _write_out(builder, node)
    elif op(node) == "addcmul":
        _write_product_out(builder, node)
    elif op(node) == "sum" and op(node.all_input_nodes[0]) in _PRODUCTS:
        _sum_inside(builder, node)
    elif op(node) == "expand_as":
        _expand_to_size(builder, node)
    elif op(node) == "repeat_interleave" and node.target is aten.repeat_interleave.self_int:
        _repeat_by_size(builder, node)


def _pair_up(builder: GraphBuilder, node: Node) -> None:
    """Multiply the operands of an einsum two at a time, from left to right as torch does."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str)
    factors = cast(Sequence[Node], operands)
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(factors) < 3 or not arrow or "..." in equation:
        return
    product, letters = factors[0], terms[0]
    for position in range(1, len(factors) - 1):
        needed = set(result).union(*terms[position + 1 :])
        both = dict.fromkeys(letters + terms[position])
        kept = "".join(letter for letter in both if letter in needed)
        product = builder.call(
            aten.einsum.default,
            f"{letters},{terms[position]}->{kept}",
            [product, factors[position]],
        )
        letters = kept
    node.args = (f"{letters},{terms[-1]}->{result}", [product, factors[-1]])
    node.kwargs = {}


def _write_out(builder: GraphBuilder, node: Node) -> None:
    """`baddbmm(bias, a, b)` is `beta * bias + alpha * (a @ b)`; a beta of 0 leaves the bias out."""
    bias, first, second = cast(tuple[Node, Node, Node], node.args[:3])
    product = builder.call(aten.bmm.default, first, second)
    product = _scaled(builder, product, argument(node, "alpha", 1))
    # Not a bias times 0: it may be memory that nobody wrote to, NaN included.
    if argument(node, "beta", 1) != 0:
        bias = _scaled(builder, bias, argument(node, "beta", 1))
        product = builder.call(aten.add.Tensor, product, bias)
    node.replace_all_uses_with(product)


def _write_product_out(builder: GraphBuilder, node: Node) -> None:
    """`addcmul(base, a, b)` is `base + value * a * b`; a base of zeros adds nothing."""
    base, first, second = cast(tuple[Node, Node, Node], node.args[:3])
    product = builder.call(aten.mul.Tensor, first, second)
    product = _scaled(builder, product, argument(node, "value", 1))
    alike = shape(product) == shape(node) and tensor(product).dtype == tensor(node).dtype
    if not alike or op(base) not in ("zeros", "zeros_like", "new_zeros"):
        product = builder.call(aten.add.Tensor, base, product)
    node.replace_all_uses_with(product)


def _scaled(builder: GraphBuilder, node: Node, factor: object) -> Node:
    return node if factor == 1 else builder.call(aten.mul.Tensor, node, factor)


def _keep_instead(builder: GraphBuilder, node: Node) -> None:
    """`masked_fill(x, dropped, 0)` is `where(not dropped, x, 0)`; a mask stays one."""
    source, dropped = cast(tuple[Node, Node], node.args[:2])
    kept = builder.call(aten.logical_not.default, dropped)
    if tensor(source).dtype == torch.bool:  # `where` would return whole numbers
        chosen = builder.call(aten.logical_and.default, source, kept)
    else:
        chosen = builder.call(aten.where.ScalarOther, kept, source, 0)
    node.replace_all_uses_with(chosen)


def _sum_inside(builder: GraphBuilder, node: Node) -> None:
    """The sum of a product over dimensions is an einsum without their letters."""
    source, dims = node.all_input_nodes[0], argument(node, "dim")
    product = contraction(source)
    plain = product is not None and product.summed and argument(node, "dtype") is None
    if product is None or not plain or len(source.users) > 1 or not isinstance(dims, (list, tuple)):
        return
    summed = {cast(int, dim) % rank(source) for dim in dims}
    kept = [label for at, label in enumerate(product.out) if at not in summed]
    if None in kept:
        return
    letters = {label: chr(ord("a") + at) for at, label in enumerate(_labels_of(product))}
    operands = [
        _without_broadcast(builder, operand, labels)
        for operand, labels in zip(product.operands, product.labels, strict=True)
    ]
    terms = ["".join(letters[label] for label in labels if label) for labels in product.labels]
    result = "".join(letters[label] for label in kept if label)
    total = builder.call(aten.einsum.default, f"{terms[0]},{terms[1]}->{result}", operands)
    for dim in sorted(summed) if argument(node, "keepdim", False) else ():
        total = builder.call(aten.unsqueeze.default, total, dim)
    node.replace_all_uses_with(total)


def _labels_of(product: Contraction) -> list[str]:
    return sorted({label for labels in product.labels for label in labels if label})


def _without_broadcast(builder: GraphBuilder, operand: Node, labels: Labels) -> Node:
    """An operand without the dimensions of size 1 that are repeated for the other one."""
    for position in reversed(range(rank(operand))):
        if labels[position] is None:
            operand = builder.call(aten.squeeze.dim, operand, position)
    return operand


def _expand_to_size(builder: GraphBuilder, node: Node) -> None:
    """`expand_as(x, other)` is `expand(x, sizes of other)`: it does not look at what `other` is."""
    source = cast(Node, node.args[0])
    added = rank(node) - rank(source)
    own = [*[None] * added, *shape(source)]
    kept = (extent == before for extent, before in zip(shape(node), own, strict=True))
    sizes = [
        -1 if same else int(extent) if extent.is_Integer else builder.size(extent)
        for extent, same in zip(shape(node), kept, strict=True)
    ]
    node.replace_all_uses_with(builder.call(aten.expand.default, source, sizes))


def _repeat_by_size(builder: GraphBuilder, node: Node) -> None:
    """`repeat_interleave(x, n, dim)` by a dynamic size n, which the exporter gets wrong: a new
    dimension of size n behind `dim`, joined with it."""
    source, times, dim = (argument(node, name) for name in ("self", "repeats", "dim"))
    if not isinstance(times, Node) or not isinstance(dim, int):
        return
    dim %= rank(node)
    apart = builder.call(aten.unsqueeze.default, source, dim + 1)
    sizes = [times if axis == dim + 1 else -1 for axis in range(rank(apart))]
    repeated = builder.call(aten.expand.default, apart, sizes)
    node.replace_all_uses_with(builder.call(aten.flatten.using_ints, repeated, dim, dim + 1))

"""Tell whether a router does at other sizes what it did in a trial, which has the example's."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Size
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import (
    argument,
    example_shape,
    is_tensor,
    op,
    reads_shape_only,
    shape,
    tensor,
)

_RANGES = frozenset(("arange", "linspace", "slice", "scalar_tensor"))
_CUTS = frozenset(("slice", "narrow", "topk"))
_SCANS = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
_SUMS = ("sum", "mean", "prod", "any", "all", "amax", "amin", "max", "min", "argmax", "argmin")
_RANKS = ("topk", "sort", "argsort", "kthvalue", "median")
_ALONG = frozenset(
    (*_SCANS, *_SUMS, *_RANKS, "var", "std", "logsumexp", "softmax", "log_softmax", "count_nonzero")
    + ("scatter_add", "scatter_reduce", "index_add", "index_reduce")
)
_BY_ROW = frozenset(
    ("gather", "scatter", "index", "index_put", "index_select", "take_along_dim", "scatter_add")
)


def routes_alike(result: Node, members: Collection[Node], inputs: Collection[Node]) -> bool:
    """Tell whether a token's gates hang on nothing but the token: neither on where it stands, nor
    on how many there are, nor on what others chose. A capacity of 64 tokens a head, or positions
    from 512 on, would not be seen in a trial of 16 tokens.

    Args:
        result: The gates [..., H].
        members: What computes them from the inputs.
    """
    decided, positions = set(inputs), set[Node]()
    for node in result.graph.nodes:
        if node not in members or node.op != "call_function":
            continue
        sources = set() if reads_shape_only(node) else set(node.all_input_nodes)
        if sources & decided:
            decided.add(node)
            if (
                _hangs_on(node, sources & positions)
                or _keeps_by_size(node)
                or _joins_tokens(node, example_shape(result)[-1])
            ):
                return False
        elif sources & positions or _counts(node):
            positions.add(node)
    return result not in positions


def _hangs_on(node: Node, positions: set[Node]) -> bool:
    """True where positions, or a size as a number, change what a node makes of scores. Whole
    numbers may say where it reads or writes: a wrong row would be seen at every size."""
    if not positions and not _reads_number(node):
        return False
    names_rows = op(node) in _BY_ROW or _is_whole(node)
    return not names_rows or not all(map(_is_whole, positions))


def _keeps_by_size(node: Node) -> bool:
    """True where a size says how many of the heads are kept."""
    if op(node) not in _CUTS or not _reads_size(node):
        return False
    dim = cast(int, argument(node, "dim", -1))
    return bool(shape(cast(Node, node.args[0]))[dim].is_Integer)


def _joins_tokens(node: Node, heads: int) -> bool:
    """True where tokens decide about one another: there are more of what is summed, counted or
    ranked than heads."""
    return any(not size.is_Integer or size > heads for size in _joined(node))


def _counts(node: Node) -> bool:
    """True for what begins to tell positions: a range or a part of a table as long as a size of the
    model's inputs, a number that is one, or a sum of so many."""
    if op(node) in _RANGES and _reads_size(node):
        return True
    is_filled = op(node) in ("full", "full_like", "new_full")
    if is_filled and isinstance(argument(node, "fill_value"), Node):
        return True
    return _reads_number(node) or any(not size.is_Integer for size in _joined(node))


def _joined(node: Node) -> Iterator[Size]:
    """Yield the sizes of the dimensions along which a node makes one of many, or one of another."""
    product = contraction(node)
    if product is not None:
        for labels, operand in zip(product.labels, product.operands, strict=True):
            sizes = zip(labels, shape(operand), strict=True)
            yield from (size for label, size in sizes if label in product.summed)
    elif op(node) in _ALONG and not _is_pointwise(node):
        sizes_of = shape(cast(Node, node.args[0]))
        dims = cast(int | list[int] | None, argument(node, "dim"))
        for dim in [dims] if isinstance(dims, int) else dims or range(len(sizes_of)):
            yield sizes_of[dim]


def _reads_number(node: Node) -> bool:
    """True for arithmetic with a size."""
    return _is_pointwise(node) and _reads_size(node)


def _reads_size(node: Node) -> bool:
    return not all(map(is_tensor, node.all_input_nodes))


def _is_pointwise(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags


def _is_whole(node: Node) -> bool:
    """True for whole numbers: no booleans."""
    if not is_tensor(node):
        return False
    dtype = tensor(node).dtype
    return not (dtype.is_floating_point or dtype == torch.bool)

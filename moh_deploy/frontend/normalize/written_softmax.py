"""Softmax that is written out, as the operator: `exp(x - max(x)) / sum(exp(x - max(x)))`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout, fresh_layout, resolve
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, rank, shape, tensor
from moh_deploy.frontend.fx.views import backward, broadcast

aten = torch.ops.aten

_DIVISIONS = frozenset(["div", "divide", "true_divide"])


def replace_written_softmax(builder: GraphBuilder, node: Node) -> None:
    """Let a softmax take over from a division, if that is one.

    Args:
        builder: Inserts in front of `node`.
    """
    powers = node.args[0]
    if not is_tensor(powers) or op(cast(Node, powers)) != "exp" or node.kwargs:
        return
    powers = cast(Node, powers)
    dim = _reduced_dim(powers, node.args[1], "sum")
    if dim is None or shape(node) != shape(powers):
        return
    scores = _without_maximum(cast(Node, powers.args[0]), dim)
    if tensor(scores).dtype != tensor(node).dtype:
        return
    node.replace_all_uses_with(builder.call(aten.softmax.int, scores, dim))


def is_division(node: Node) -> bool:
    """True for a node that `replace_written_softmax` may apply to."""
    return op(node) in _DIVISIONS


def _without_maximum(scores: Node, dim: int) -> Node:
    """The scores before their maximum was subtracted, which a softmax does itself."""
    if op(scores) not in ("sub", "subtract") or argument(scores, "alpha", 1) != 1:
        return scores
    whole, subtracted = scores.args[:2]
    if not is_tensor(whole) or shape(cast(Node, whole)) != shape(scores):
        return scores
    found = _reduced_dim(cast(Node, whole), subtracted, "amax", "max")
    return cast(Node, whole) if found == dim else scores


def _reduced_dim(whole: Node, value: object, *reductions: str) -> int | None:
    """The dimension that a tensor is reduced along to make a value that is broadcast against it;
    None where the value is something else."""
    layout = fresh_layout(shape(whole))
    aligned = broadcast(cast(Node, value), layout) if is_tensor(value) else None
    if aligned is None:
        return None
    node, found = cast(Node, value), aligned
    while (step := backward(node, found)) is not None:
        node, found = step
    if op(node) == "getitem" and node.args[1] == 0:  # max gives the places, too
        node = cast(Node, node.args[0])
    if op(node) not in reductions or node.args[0] is not whole or argument(node, "dtype"):
        return None
    dim = _only_dim(node)
    return dim if dim is not None and _is_without(found, layout, dim, node) else None


def _only_dim(node: Node) -> int | None:
    dims = argument(node, "dim")
    if isinstance(dims, Sequence):
        dims = dims[0] if len(dims) == 1 else None
    return dims % rank(cast(Node, node.args[0])) if isinstance(dims, int) else None


def _is_without(found: Layout, whole: Layout, dim: int, reduction: Node) -> bool:
    """True where the reduced tensor is aligned with that very dimension left out."""
    kept = ((),) if argument(reduction, "keepdim", False) else ()
    return resolve(found) == resolve((*whole[:dim], *kept, *whole[dim + 1 :]))

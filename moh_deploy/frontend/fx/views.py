"""Operators that move elements without changing them, as maps between layouts."""

from typing import cast

import torch
from sympy import cancel
from torch.fx import Node

from moh_deploy.frontend.fx import axes
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, rank, shape, tensor

_REGROUPS = ("view", "reshape", "unsafe_view", "view_as", "reshape_as", "ravel")
_REGROUPS_DIM = ("flatten", "unflatten", "squeeze", "unsqueeze", "atleast_2d", "atleast_3d")
_COPIES = ("contiguous", "clone", "alias", "detach", "lift_fresh_copy", "identity")
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout")
_CASTS = ("to", "to_copy", "type_as", "float", "double", "half", "bfloat16")
_SAME_ORDER = frozenset((*_REGROUPS, *_REGROUPS_DIM, *_COPIES, *_CASTS, "native_dropout"))
_TRANSPOSES = ("transpose", "t", "numpy_T", "mT", "adjoint", "matrix_H", "swapaxes", "swapdims")
REORDERS = frozenset((*_TRANSPOSES, "permute", "movedim", "moveaxis"))
_EXPAND = frozenset(["expand", "expand_as", "broadcast_to"])
# Extents that tell dimensions apart, for `_permutation`.
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


def is_view(node: Node) -> bool:
    """True for a node that only regroups, reorders, casts or copies its first input."""
    # Dropout in eval mode copies. Casts count: who cares for dtypes asks `casts`.
    name = op(node)
    if name in _DROPOUTS:
        return not argument(node, "train", False)
    if name in ("slice", "expand"):  # written out of habit: `x[:, :]`, `x.expand(x.shape)`
        return is_tensor(node.args[0]) and shape(cast(Node, node.args[0])) == shape(node)
    if name == "select":  # `x[0]` of one sequence
        source = node.args[0]
        return is_tensor(source) and bool(shape(cast(Node, source))[cast(int, node.args[1])] == 1)
    return name in _SAME_ORDER or name in REORDERS


def through_views(node: Node) -> Node:
    """Return the tensor that a node is a view of, or the node itself."""
    while is_view(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def forward(node: Node, layout: axes.Layout) -> axes.Layout | None:
    """Layout of a view's output, given its input's."""
    if op(node) in REORDERS:
        return tuple(layout[source] for source in _permutation(node))
    return axes.regroup(axes.flat(layout), shape(node))


def backward(node: Node, layout: axes.Layout) -> tuple[Node, axes.Layout] | None:
    """The tensor that a view, expansion or repetition reads and its layout, given the output's.

    Axes that only repeat elements are gone from the result: the tensor does not vary along them.
    """
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or not is_tensor(source):
        return None
    name = op(node)
    if name in _EXPAND:
        # Aligned at the right, as torch expands: [1, D] -> [B, S, D] varies along D alone.
        kept = zip(layout[len(layout) - rank(source) :], shape(source), strict=True)
        found: axes.Layout | None = tuple(() if extent == 1 else dim for dim, extent in kept)
    elif name == "repeat_interleave":
        found = _undo_repeat_interleave(node, layout)
    elif name in ("repeat", "tile"):
        found = _undo_repeat(node, layout)
    elif not is_view(node):
        return None
    elif name in REORDERS:
        # out[i] = in[p[i]], so in[p[i]] = out[i].
        inverse: list[axes.Dim] = [()] * len(layout)
        for position, original in enumerate(_permutation(node)):
            inverse[original] = layout[position]
        found = tuple(inverse)
    else:
        found = axes.regroup(axes.flat(layout), shape(source))
    return None if found is None else (source, found)


def _permutation(node: Node) -> tuple[int, ...]:
    """Read a reordering off the operator itself: run it on a tensor whose extents are distinct."""
    assert isinstance(node.target, torch._ops.OpOverload)
    probe = torch.empty(_PRIMES[: rank(cast(Node, node.args[0]))], device="meta")
    moved = node.target(probe, *node.args[1:], **node.kwargs)
    return tuple(_PRIMES.index(extent) for extent in moved.shape)


def _undo_repeat_interleave(node: Node, layout: axes.Layout) -> axes.Layout | None:
    """`repeat_interleave(x, n, dim)` adds a minor axis of size n to one dimension."""
    repeats, dim = argument(node, "repeats"), argument(node, "dim")
    if not isinstance(repeats, int) or not isinstance(dim, int):
        return None
    # [kv, ...] -> [kv * n, ...]: entry h of the result is entry h // n of the source.
    source = shape(cast(Node, node.args[0]))
    position = dim % len(layout)
    split = axes.regroup(layout[position], (source[position], axes.size_of(repeats)))
    if split is None:
        return None
    return (*layout[:position], split[0], *layout[position + 1 :])


def _undo_repeat(node: Node, layout: axes.Layout) -> axes.Layout | None:
    """`repeat(x, n)` adds a major axis of size n to a dimension, and dimensions in front."""
    repeats, source = node.args[1], shape(cast(Node, node.args[0]))
    if not isinstance(repeats, (list, tuple)) or not all(isinstance(n, int) for n in repeats):
        return None
    if len(layout) < len(source) or len(repeats) > len(layout):
        return None
    # [kv, ...] -> [n * kv, ...]: entry h of the result is entry h % kv of the source.
    kept: list[axes.Dim] = []
    for dim, extent in zip(layout[len(layout) - len(source) :], source, strict=True):
        split = axes.regroup(dim, (cancel(axes.product(axes.leaves(dim)) / extent), extent))
        if split is None:
            return None
        kept.append(split[1])
    return tuple(kept)


def history(node: Node, layout: axes.Layout) -> list[tuple[Node, axes.Layout]]:
    """The node and the tensors it is a view of, nearest first, each with its layout."""
    trail = [(node, axes.resolve(layout))]
    while (step := backward(*trail[-1])) is not None:
        trail.append((step[0], axes.resolve(step[1])))
    # A reshape further back can split an axis: every entry is stated in the final axes.
    return [(source, axes.resolve(found)) for source, found in trail]


def broadcast(node: Node, onto: axes.Layout) -> axes.Layout | None:
    """Layout of a tensor that is broadcast, right-aligned, against one of layout `onto`."""
    extents = shape(node)
    if len(extents) > len(onto):
        return None
    dims = onto[len(onto) - len(extents) :]
    aligned: list[axes.Dim] = []
    for extent, dim in zip(extents, dims, strict=True):
        if extent == 1:
            aligned.append(())
        elif extent == axes.product(axes.leaves(dim)):
            aligned.append(axes.leaves(dim))
        else:
            return None
    return tuple(aligned)


def operand_layout(node: Node, result: axes.Layout) -> axes.Layout:
    """Layout of a tensor that an operator broadcast to its result, of layout `result`.

    Torch has checked that each size is 1 or that of the result, however either is written down:
    `(2*s - 1)//2 + 1` is s.
    """
    extents = shape(node)
    dims = result[len(result) - len(extents) :]
    aligned = zip(extents, dims, strict=True)
    return tuple(() if extent == 1 else axes.leaves(dim) for extent, dim in aligned)


def lacks(layout: axes.Layout, kept: tuple[axes.Axis, ...]) -> bool:
    """True where the tensor does not vary along any of the axes."""
    present = set(axes.flat(layout))
    return not any(axis in present for axis in axes.leaves(kept))


def casts(node: Node) -> bool:
    source = node.args[0]
    return isinstance(source, Node) and tensor(source).dtype != tensor(node).dtype

"""Tensors that are a part of another one, whatever takes the part: slices, selections, splits."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from sympy import Integer
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Axis, Layout, product, resolve
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.graph import argument, op, rank, shape
from moh_deploy.frontend.fx.views import backward, casts, is_view

# An operator with several pieces, each a `getitem` of it.
SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split", "unbind")
NO_TWINS: Mapping[Node, Node] = MappingProxyType({})


@dataclass(frozen=True)
class Slice:
    """Entries `start` to `stop` of one dimension; a single entry may have lost the dimension."""

    source: Node
    dim: int
    start: int
    stop: int
    keeps_dim: bool


def read_slice(node: Node) -> Slice | None:
    """Read a node as a slice of another tensor; slices of everything are looked through.

    A part without elements does not count.
    """
    name = op(node)
    call = cast(Node, node.args[0]) if name == "getitem" else node
    if op(call) not in (*SPLITS, "slice", "narrow", "select"):
        return None
    source = cast(Node, call.args[0])
    while op(source) == "slice" and shape(cast(Node, source.args[0])) == shape(source):
        source = cast(Node, source.args[0])
    dim = cast(int, argument(call, "dim", 0)) % rank(source)
    extent = shape(source)[dim]
    if not extent.is_Integer:
        return None
    if name == "getitem":
        index = cast(int, node.args[1])
        if op(call) == "unbind":
            return Slice(source, dim, index, index + 1, keeps_dim=False)
        lengths = [int(piece.shape[dim]) for piece in call.meta["val"]]
        first = sum(lengths[:index])
        found = Slice(source, dim, first, first + lengths[index], keeps_dim=True)
        return found if lengths[index] else None
    start = argument(node, "index" if name == "select" else "start", 0) or 0
    if not isinstance(start, int):
        return None
    length = Integer(1) if name == "select" else shape(node)[dim]
    if not length.is_Integer or not length:
        return None
    if argument(node, "step", 1) != 1 and name == "slice":
        return None
    start = max(start + int(extent), 0) if start < 0 else start  # -9 of 4 starts at 0
    return Slice(source, dim, start, start + int(length), keeps_dim=name != "select")


@dataclass(frozen=True)
class Piece:
    """A tensor, or the part of one that `cuts` leave."""

    node: Node
    layout: Layout  # what the dimensions of the part mean
    cuts: tuple[tuple[int, int, int], ...] = ()  # dimension, start and stop of each cut


def pieces(node: Node, layout: Layout, twins: Mapping[Node, Node] = NO_TWINS) -> list[Piece]:
    """The node and what it is a view or an equal part of, nearest first.

    Query, key and value are often parts of one projection: the projection with a cut is the tensor
    that needs no rearranging.

    Args:
        twins: Nodes of the same value that are to be read instead.
    """
    # q = qkv[..., :C]: the third of [B, S, 3C] is entry 0 of an axis of 3. Followed further back,
    # that axis may stand anywhere among the others; `cut_out` says whether what it leaves is a
    # slice.
    trail = [(node, layout, dict[Axis, int]())]
    while True:
        current, known, fixed = trail[-1]
        if current in twins:
            trail[-1] = (twins[current], known, fixed)
            continue
        step = backward(current, known)
        if step is not None:
            trail.append((*step, fixed))
            continue
        whole = _containing_tensor(current, known)
        if whole is None:
            break
        source, source_layout, axis, index = whole
        trail.append((source, source_layout, {**fixed, axis: index}))
    found = [cut_out(source, resolve(known), fixed) for source, known, fixed in trail]
    return [piece for piece in found if piece is not None]


def trail_of(operand: Operand, twins: Mapping[Node, Node] = NO_TWINS) -> list[Piece]:
    """The operand and what it is a view or a part of, up to the nearest cast.

    Args:
        twins: Nodes of the same value to read instead of others.
    """
    trail: list[Piece] = []
    for piece in pieces(operand.node, operand.layout, twins):
        trail.append(piece)
        if is_view(piece.node) and casts(piece.node):
            break
    return trail


def _containing_tensor(node: Node, layout: Layout) -> tuple[Node, Layout, Axis, int] | None:
    """Return the tensor that an equal part is an entry of, along one more axis."""
    part = read_slice(node)
    if part is None:
        return None
    extent, length = int(shape(part.source)[part.dim]), part.stop - part.start
    # Parts of equal size, such as those of qkv: others are no entries of an axis.
    if length == extent or extent % length or part.start % length:
        return None
    axis = Axis(product(()) * (extent // length))
    dims = list(layout)
    if part.keeps_dim:
        dims[part.dim] = (axis, *dims[part.dim])
    else:
        dims.insert(part.dim, (axis,))
    return part.source, tuple(dims), axis, part.start // length


def cut_out(node: Node, layout: Layout, fixed: dict[Axis, int]) -> Piece | None:
    """The part as cuts of whole dimensions; None where it is not contiguous in them."""
    # Fixed axes must be the major ones of their dimension: entry i of (3, C) is i*C to (i+1)*C.
    index_of = {leaf: index for axis, index in fixed.items() for leaf in axis.leaves()}
    if len(index_of) != len(fixed):
        return None
    dims, cuts = [], []
    for position, dim in enumerate(layout):
        rest = dim
        while rest and rest[0] in index_of:
            rest = rest[1:]
        if any(axis in index_of for axis in rest):
            return None
        if rest != dim:
            start = 0
            for axis in dim[: len(dim) - len(rest)]:
                start = start * int(axis.size) + index_of[axis]
            length = product(rest)
            if not length.is_Integer:
                return None
            cuts.append((position, start * int(length), (start + 1) * int(length)))
        dims.append(rest)
    return Piece(node, tuple(dims), tuple(cuts))

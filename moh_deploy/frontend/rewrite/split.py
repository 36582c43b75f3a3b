"""Split packed projections: one product with weights for each of query, key and value.

Slices and permutations of weights are made once, when the model is exported; those of an activation
would be copied in every run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from moh_deploy.frontend.fx import axes
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, Operand, UnknownSizeError
from moh_deploy.frontend.fx.graph import op, reads_shape_only, shape
from moh_deploy.frontend.fx.slices import SPLITS, Piece, read_slice
from moh_deploy.frontend.fx.views import forward, is_view
from moh_deploy.frontend.recognize.projection import Projection, Stored, read_projection
from moh_deploy.frontend.recognize.walk import walk
from moh_deploy.frontend.rewrite.rewritten import Swap

# Follow a packed projection to its readers, and tell which of its columns each takes.


@dataclass(frozen=True)
class ColumnWindow:
    """Entries `start` to `stop` of neighbouring axes, which make up an axis of their own."""

    whole: axes.Dim  # the axes that are cut
    start: int
    stop: int
    part: axes.Dim  # what is left of them: one axis, or none for a single entry


@dataclass(frozen=True)
class ProjectionPart:
    """A tensor that holds some columns of a projection."""

    node: Node
    layout: axes.Layout
    windows: tuple[ColumnWindow, ...]  # what was cut on the way from the projection, in that order


def _parts(
    whole: ProjectionPart, columns: axes.Dim, packed: Callable[[Node], bool]
) -> list[ProjectionPart] | None:
    """Return the parts that a tensor is cut into; None if it is also read uncut.

    Args:
        columns: The axes that may be cut.
        packed: Tells whether a part is still of several uses, so that it is cut further.
    """
    # qkv [B, S, 3 * H * D] -> view [B, S, 3, H, D] -> three pieces; or chunk first and view then.
    # One reader that takes all columns makes splitting the projection pointless.
    found: list[ProjectionPart] = []
    for user in whole.node.users:
        splits = op(user) in SPLITS
        if reads_shape_only(user) or (splits and not user.users):
            continue
        if is_view(user):
            layout = forward(user, whole.layout)
            inner = None if layout is None else ProjectionPart(user, layout, whole.windows)
            deeper = None if inner is None else _parts(inner, columns, packed)
            if deeper is None:
                return None
            found += deeper
            continue
        for piece in [piece for piece in user.users if piece.users] if splits else [user]:
            # A cut along tokens, or of a batch, is no part of the projection's columns.
            cut = _cut(whole, piece, columns)
            if cut is None:
                return None
            inside = (*columns, *cut.windows[-1].part)
            deeper = _parts(cut, inside, packed) if packed(piece) else None
            found += [cut] if deeper is None else deeper
    return found


def _cut(whole: ProjectionPart, node: Node, columns: axes.Dim) -> ProjectionPart | None:
    """The tensor as a part of another one, along axes that may be cut."""
    found = read_slice(node)
    if found is None or found.source is not whole.node:
        return None
    chosen = axes.leaves(whole.layout[found.dim])
    if not chosen or not set(chosen) <= set(axes.leaves(columns)):
        return None
    # A slice leaves an axis of its own, `select` leaves none.
    window = ColumnWindow(chosen, found.start, found.stop, axes.fresh_dim(found.stop - found.start))
    layout = list(whole.layout)
    if found.keeps_dim:
        layout[found.dim] = window.part
    else:
        del layout[found.dim]
    return ProjectionPart(node, tuple(layout), (*whole.windows, window))


def column_order(part: ProjectionPart, columns: axes.Dim) -> tuple[axes.Axis, ...]:
    """The axes of a part that come from columns, in the order of its dimensions."""
    known = {*axes.leaves(columns), *(leaf for w in part.windows for leaf in axes.leaves(w.part))}
    return tuple(axis for axis in axes.flat(part.layout) if axis in known)


# Rearrange and cut weights inside the graph; what is made of constants is folded afterwards.

aten = torch.ops.aten


def project(
    layouts: LayoutBuilder,
    projection: Projection,
    out: axes.Layout,
    columns: axes.Dim,
    *,
    windows: Sequence[ColumnWindow] = (),
) -> Operand:
    """Insert a projection that computes some columns of another one.

    Args:
        out: Layout of the whole result.
        columns: The axes of the columns to compute, in the order in which they shall stand.
        windows: How they are cut from those of the whole, in the order in which they are cut.

    Returns:
        The result: the rows of the whole one, and one dimension of columns.
    """
    # out [..., columns] = x [..., inner] @ weight [inner, columns] + bias [columns]
    whole = projection.columns(out)
    rows = tuple(dim for dim in out if not set(dim) & set(whole))
    x, weight = projection.operands(out)
    inner = tuple(axis for axis in axes.flat(x.layout) if axis not in set(axes.flat(out)))
    bias = projection.bias_of(out)
    if bias is not None:
        spread = Operand(layouts.arrange(bias, (whole,)), (whole,))
        bias_node = cut_weight(layouts, spread, windows, (columns,))
    node = layouts.builder.call(
        aten.linear.default,
        layouts.arrange(x, (*rows, inner)),
        cut_weight(layouts, weight, windows, (columns, inner)),
        None if bias is None else bias_node,
    )
    return Operand(node, (*rows, columns))


def cut_weight(
    layouts: LayoutBuilder, weight: Operand, windows: Sequence[ColumnWindow], wanted: axes.Layout
) -> Node:
    """Return the part of a weight that windows leave, in the wanted layout.

    Args:
        windows: In the order in which they are cut.
    """
    # The cuts that the model makes of the activation, made of the weight's columns instead.
    for window in windows:
        whole = axes.leaves(window.whole)
        layout = _apart(axes.resolve(weight.layout), whole)
        node, position = layouts.arrange(weight, layout), layout.index(whole)
        node = layouts.builder.call(aten.slice.Tensor, node, position, window.start, window.stop)
        weight = Operand(node, tuple(window.part if dim == whole else dim for dim in layout))
    return layouts.arrange(weight, wanted)


def _apart(layout: axes.Layout, chosen: axes.Dim) -> axes.Layout:
    """The layout with these axes as one dimension, where the first of them was."""
    # [3 * H * D, C] cut along its first axis: [3, H * D, C], and one entry is taken.
    dims: list[axes.Dim] = []
    for dim in layout:
        run: axes.Dim = ()
        for axis in dim:
            if axis not in chosen:
                run = (*run, axis)
            elif axis == chosen[0]:
                dims += [run, chosen] if run else [chosen]
                run = ()
        if run or not dim:
            dims.append(run)
    return tuple(dims)


class Splitter:
    """Inserts the parts of packed projections beside them, once for each."""

    def __init__(self, graph: Graph, stored: Stored) -> None:
        self._graph = graph
        self._stored = stored
        self._done: dict[Node, tuple[Swap, ...]] = {}
        self._projections: dict[Node, Projection | None] = {}
        self._alone: dict[tuple[Node, int, int], Node] = {}

    def split(self, operands: Sequence[Node]) -> tuple[Swap, ...]:
        """Insert projections of their own for a layer's operands, each of tokens [..., columns]."""
        # A projection is packed if it leads to more than one of query, key and value.
        swaps: dict[Node, Swap] = {}
        roles = [self._cone(node) for node in operands]

        def packed(node: Node) -> bool:
            return sum(node in cone for cone in roles) > 1

        for node in dict.fromkeys(node for cone in roles for node in cone):
            projection = self.read(node)
            if projection is not None and node not in self._done:
                self._done[node] = tuple(self._parts(projection, packed))
            swaps.update((swap.old, swap) for swap in self._done.get(node, ()))
        return tuple(swaps.values())

    def _parts(self, projection: Projection, packed: Callable[[Node], bool]) -> Iterator[Swap]:
        """Insert the parts of a projection: none where it is one tensor of tokens already, or where
        a packed one is also read uncut, so that it would be computed twice."""
        out = axes.fresh_layout(shape(projection.node))
        columns = projection.columns(out)
        parts: list[ProjectionPart] | None = []
        if packed(projection.node):
            parts = _parts(ProjectionPart(projection.node, out, ()), columns, packed)
        # Of one operand, but not [..., columns]: made by einsum as [B, H, S, D], say.
        elif axes.flat(out)[-len(columns) :] != columns:
            parts = [ProjectionPart(projection.node, out, ())]
        layouts = LayoutBuilder(GraphBuilder(self._graph, projection.node.next))
        # x @ W[:, start:stop], in the order of columns that the part has in the end: permuting the
        # columns of W costs nothing, since it is folded.
        for part in parts or ():
            try:
                alone = project(
                    layouts, projection, out, column_order(part, columns), windows=part.windows
                )
                node = layouts.arrange(alone, axes.resolve(part.layout))
            except UnknownSizeError:
                return
            # Of a part that holds its columns in order: the first one, and the one behind its last.
            order = axes.leaves(columns)
            for window in part.windows if len(part.windows) == 1 else ():
                rest = order[len(window.whole) :]
                in_order = column_order(part, columns) == (*axes.leaves(window.part), *rest)
                if in_order and order == (*window.whole, *rest):
                    width = int(axes.product(rest))
                    cut = (projection.node, window.start * width, window.stop * width)
                    self._alone[cut] = alone.node
            yield Swap(part.node, node, "a part of a packed projection")

    def alone(self, piece: Piece) -> Piece:
        """A cut of a packed projection as a projection of its own, where there is one."""
        if len(piece.cuts) != 1 or piece.cuts[0][0] != len(piece.layout) - 1:
            return piece
        _, start, stop = piece.cuts[0]
        found = self._alone.get((piece.node, start, stop))
        return piece if found is None else Piece(found, piece.layout)

    def _cone(self, node: Node) -> list[Node]:
        """The nodes that a tensor is computed from, back to the nearest projections."""

        # Back through norms, rotations and views; a projection ends the way, and so does an input.
        def onward(current: Node) -> list[Node]:
            ends = current.op != "call_function" or self.read(current) is not None
            return [] if ends else current.all_input_nodes

        return list(walk(node, onward))

    def read(self, node: Node) -> Projection | None:
        """Read a node as a product with weights; None for other nodes."""
        if node not in self._projections:
            self._projections[node] = read_projection(node, self._stored)
        return self._projections[node]

"""Follow a packed projection to its readers, and tell which of its columns each takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, flat, fresh_dim, leaves, resolve
from moh_deploy.frontend.fx.graph import op, reads_shape_only
from moh_deploy.frontend.fx.slices import SPLITS, read_slice
from moh_deploy.frontend.fx.views import forward, is_view


@dataclass(frozen=True)
class ColumnWindow:
    """Entries `start` to `stop` of neighbouring axes, which make up an axis of their own.

    Attributes:
        whole: The axes that are cut.
        part: What is left of them: one axis, or none for a single entry.
    """

    whole: Dim
    start: int
    stop: int
    part: Dim


@dataclass(frozen=True)
class ProjectionPart:
    """A tensor that holds some columns of a projection.

    Attributes:
        node: The tensor.
        layout: What its dimensions mean.
        windows: What was cut on the way from the projection, in that order.
    """

    node: Node
    layout: Layout
    windows: tuple[ColumnWindow, ...]


def parts_of(
    node: Node, layout: Layout, columns: Dim, *, packed: Callable[[Node], bool]
) -> list[ProjectionPart] | None:
    """Return the parts that a tensor is cut into; None where somebody reads it uncut.

    Args:
        layout: Of the tensor.
        columns: The axes that may be cut.
        packed: Tells whether a part is still of several uses, so that it is cut further.
    """
    found = _parts(ProjectionPart(node, layout, ()), columns, packed)
    if found is None:
        return None
    return [ProjectionPart(part.node, resolve(part.layout), part.windows) for part in found]


def _parts(
    whole: ProjectionPart, columns: Dim, packed: Callable[[Node], bool]
) -> list[ProjectionPart] | None:
    """Follow views to the cuts."""
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


def _cut(whole: ProjectionPart, node: Node, columns: Dim) -> ProjectionPart | None:
    """The tensor as a part of another one, along axes that may be cut."""
    found = read_slice(node)
    if found is None or found.source is not whole.node:
        return None
    axes = leaves(whole.layout[found.dim])
    if not axes or not set(axes) <= set(leaves(columns)):
        return None
    # A slice leaves an axis of its own, `select` leaves none.
    window = ColumnWindow(axes, found.start, found.stop, fresh_dim(found.stop - found.start))
    layout = list(whole.layout)
    if found.keeps_dim:
        layout[found.dim] = window.part
    else:
        del layout[found.dim]
    return ProjectionPart(node, tuple(layout), (*whole.windows, window))


def column_order(part: ProjectionPart, columns: Dim) -> tuple[Axis, ...]:
    """The axes of a part that come from columns, in the order of its dimensions."""
    known = {*leaves(columns), *(leaf for w in part.windows for leaf in leaves(w.part))}
    return tuple(axis for axis in flat(part.layout) if axis in known)

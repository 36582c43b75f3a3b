"""Windows that were cut out of an image, whatever cut them."""

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, Size, leaves, regroup
from moh_deploy.frontend.fx.builder import NotCoveredError, Operand
from moh_deploy.frontend.fx.elements import elements_of
from moh_deploy.frontend.fx.graph import example_shape, shape
from moh_deploy.frontend.fx.known_values import KnownValues, arranged, one_axis_a_dim
from moh_deploy.frontend.fx.slices import Piece, cut_out
from moh_deploy.frontend.recognize.aggregated.form import Window, windows_like


@dataclass(frozen=True)
class WindowAxes:
    """Axes of a tensor of windows."""

    batch: Dim
    heads: Dim
    tokens: Dim
    taps: Dim
    head_dim: Dim


@dataclass(frozen=True)
class CutWindows:
    """A tensor of windows, read."""

    image: Piece
    neighbours: Tensor  # [N, L], the pixel at each tap; -1 where it is 0

    def orders(self) -> dict[Window, Tensor]:
        """Windows that these can be, each with [L]: the window's own number of each tap."""
        return dict(windows_like(self.neighbours))

    def is_zero_outside(self, window: Window, order: Tensor) -> bool:
        outside = window.neighbours()[:, order] < 0
        return bool((self.neighbours[outside] < 0).all())


def read_windows(
    parts: Sequence[tuple[Operand, WindowAxes]], known: KnownValues, what: str
) -> CutWindows:
    """Return the pixel and image of each element of a tensor of windows.

    Args:
        parts: The windows: all taps, or tensors of a part of the taps each, in order.
        what: `keys` or `values`, for the reason.
    """
    sources: set[Node] = set()
    indices: list[Tensor] = []
    for operand, axes in parts:
        elements = elements_of(operand.node, known)
        if elements is None:
            raise NotCoveredError(f"the {what} of a window are not parts of one image")
        groups = (axes.batch, axes.heads, axes.tokens, axes.taps, axes.head_dim)
        index = arranged(elements.index, operand.layout, groups)
        counts = (torch.Size([int(axis.size) for axis in leaves(group)]) for group in groups[1:])
        indices.append(index.expand(-1, *(count.numel() for count in counts)))
        sources.add(elements.source)
    if len(sources) != 1:
        raise NotCoveredError(f"the {what} of a window are not parts of one image")
    # -1 is a zero that padding put there. The centre of a window is never outside, but which tap is
    # the centre is unmarked: each tap that always is inside is tried.
    index = torch.cat(indices, dim=3)  # [B, H, N, L, D]
    always_inside = (index >= 0).all(0).all(0).all(0).all(-1).nonzero().flatten()
    for centre in always_inside.tolist():
        found = _cut_around(index, centre, parts[0][1], sources.copy().pop())
        if found is not None:
            return found
    raise NotCoveredError(f"the {what} of a window are not its pixels' neighbours")


def _cut_around(index: Tensor, centre: int, axes: WindowAxes, source: Node) -> CutWindows | None:
    """Read windows, given which of their taps is the pixel itself."""
    # Given the centre, its elements are the image; every other tap must be another pixel of it,
    # with the same batch, head and feature: compared for all elements, not only those that were
    # looked up.
    pixels = index[:, :, :, centre, :]  # [B, H, N, D]
    by_axis, flat_axes = one_axis_a_dim(
        pixels, (axes.batch, axes.heads, axes.tokens, axes.head_dim)
    )
    count = torch.Size(example_shape(source)).numel()
    found = read_layout(by_axis, flat_axes, shape(source), count)
    image = None if found is None else cut_out(source, *found)
    neighbours = _lookup(index[0, 0, :, :, 0], pixels[0, 0, :, 0])
    if image is None or neighbours is None:
        return None
    expected = pixels[:, :, neighbours.clamp(min=0), :].masked_fill(
        (neighbours < 0)[None, None, :, :, None], -1
    )
    return CutWindows(image, neighbours) if torch.equal(expected, index) else None


def _lookup(index: Tensor, pixels: Tensor) -> Tensor | None:
    """[N, L]: the position in `pixels` [N] of each index; -1 stays."""
    ordered, places = pixels.sort()
    position = torch.searchsorted(ordered, index.contiguous()).clamp(max=len(pixels) - 1)
    outside = index < 0
    if not bool(((ordered[position] == index) | outside).all()):
        return None
    return places[position].masked_fill(outside, -1)


# The layout of a tensor, told by where in its memory each element is.


def read_layout(
    index: Tensor, axes: Dim, extents: Sequence[Size], count: int
) -> tuple[Layout, dict[Axis, int]] | None:
    """Tell what the dimensions of a tensor are.

    Args:
        index: One dimension for each axis: the flat index of each element.
        axes: What the dimensions of `index` are.
        extents: Of the tensor; `count` is their product at the example's sizes.

    Returns:
        The layout and, where elements are a part of the tensor, axes of its own with one entry that
        is taken, each with that entry; None where the elements do not lie in equal strides.
    """
    # index[b, h, n, d] = origin + b * stride_b + h * stride_h + ...: sorted by stride, the axes
    # stand in the order in which the tensor has them in memory, the last dimension first.
    strides = _strides(index)
    if strides is None:
        return None
    origin = int(index.flatten()[0])
    order: list[Axis] = []
    fixed: dict[Axis, int] = {}
    reached = 1

    def fill(stride: int) -> bool:
        """Entries that are left out on the way up to `stride` are an axis of their own."""
        gap, rest = divmod(stride, reached)
        if gap > 1:
            axis = Axis(sympy.Integer(gap))
            fixed[axis] = origin // reached % gap
            order.insert(0, axis)
        return gap > 0 and rest == 0

    for stride, size, axis in sorted(
        zip(strides, index.shape, axes, strict=True), key=lambda item: item[0]
    ):
        if stride == 0:
            continue  # the tensor does not vary along the axis
        if not fill(stride):
            return None
        order.insert(0, axis)
        reached = stride * size
    if not fill(count):
        return None
    layout = regroup(order, extents)
    return None if layout is None else (layout, fixed)


def _strides(index: Tensor) -> list[int] | None:
    """The step of each dimension; None where they are not equal, or negative."""
    # A step read off one neighbour in each dimension, and checked against all elements.
    origin = index[(0,) * index.dim()]
    expected = origin
    strides: list[int] = []
    for dim, size in enumerate(index.shape):
        step = index[tuple(int(dim == other) for other in range(index.dim()))] - origin
        strides.append(int(step))
        place = torch.arange(size).reshape([-1 if d == dim else 1 for d in range(index.dim())])
        expected = expected + place * step
    regular = min(strides, default=0) >= 0 and torch.equal(expected.expand_as(index), index)
    return strides if regular else None

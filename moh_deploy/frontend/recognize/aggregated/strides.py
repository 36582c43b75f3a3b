"""The layout of a tensor, told by where in its memory each element is."""

from __future__ import annotations

from collections.abc import Sequence

import sympy  # type: ignore[import-untyped, unused-ignore]
import torch
from torch import Tensor

from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, Size, regroup


def read_layout(
    index: Tensor, axes: Dim, extents: Sequence[Size], count: int
) -> tuple[Layout, dict[Axis, int]] | None:
    """Tell what the dimensions of a tensor are.

    Args:
        index: One dimension for each axis: the flat index of each element.
        axes: What the dimensions of `index` are.
        extents: Of the tensor; `count` is their product at the example's sizes.

    Returns:
        The layout and, where elements are a part of the tensor, axes of its own of which one entry
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

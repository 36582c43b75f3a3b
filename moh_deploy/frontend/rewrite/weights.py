"""Rearrange and cut weights inside the graph; what is made of constants is folded afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, flat, leaves, resolve
from moh_deploy.frontend.fx.builder import LayoutBuilder
from moh_deploy.frontend.fx.operand import Operand
from moh_deploy.frontend.recognize.parts import ColumnWindow
from moh_deploy.frontend.recognize.projection import Projection

aten = torch.ops.aten


def project(
    layouts: LayoutBuilder,
    projection: Projection,
    out: Layout,
    columns: Dim,
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
    inner = tuple(axis for axis in flat(x.layout) if axis not in set(flat(out)))
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
    layouts: LayoutBuilder, weight: Operand, windows: Sequence[ColumnWindow], wanted: Layout
) -> Node:
    """Return the part of a weight that windows leave, in the wanted layout.

    Args:
        windows: In the order in which they are cut.
    """
    # The cuts that the model makes of the activation, made of the weight's columns instead.
    for window in windows:
        weight = _cut(layouts, weight, window)
    return layouts.arrange(weight, wanted)


def _cut(layouts: LayoutBuilder, weight: Operand, window: ColumnWindow) -> Operand:
    whole = leaves(window.whole)
    layout = _apart(resolve(weight.layout), whole)
    node = layouts.arrange(weight, layout)
    position = layout.index(whole)
    node = layouts.builder.call(aten.slice.Tensor, node, position, window.start, window.stop)
    return Operand(node, tuple(window.part if dim == whole else dim for dim in layout))


def _apart(layout: Layout, axes: Dim) -> Layout:
    """The layout with these axes as one dimension, where the first of them was."""
    # [3 * H * D, C] cut along its first axis: [3, H * D, C], of which one entry is taken.
    dims: list[Dim] = []
    for dim in layout:
        run: Dim = ()
        for axis in dim:
            if axis not in axes:
                run = (*run, axis)
            elif axis == axes[0]:
                dims += [run, axes] if run else [axes]
                run = ()
        if run or not dim:
            dims.append(run)
    return tuple(dims)

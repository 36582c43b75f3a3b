"""Sliding windows (`unfold`, im2col) as slices of the padded image.

Exporters gather every window element by index, which is the slowest operator of such a model. The
taps of a window are strided slices of one padded image; nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import argument, rank

aten = torch.ops.aten

_TO_THE_END = 2**63 - 1


def replace_unfold(builder: GraphBuilder, node: Node) -> None:
    """Let slices of the padded image take over from an `im2col` node on a batch of images.

    Args:
        builder: Inserts in front of `node`.
        node: `im2col` of an image [B, C, H, W]; an image without a batch stays as it is.
    """
    image = cast(Node, node.args[0])
    if rank(image) != 4:
        return
    kernel, dilation, padding, stride = (
        cast(Sequence[int], argument(node, name))
        for name in ("kernel_size", "dilation", "padding", "stride")
    )
    if any(padding):
        top, left = padding
        image = builder.call(aten.constant_pad_nd.default, image, [left, left, top, top], 0.0)
    taps = [
        _tap(builder, image, (row, column), kernel, dilation, stride)
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]
    stacked = builder.call(aten.stack.default, taps, 2)  # [B, C, kh*kw, Ho, Wo]
    windows = builder.call(aten.flatten.using_ints, stacked, 3, 4)
    node.replace_all_uses_with(builder.call(aten.flatten.using_ints, windows, 1, 2))


def _tap(
    builder: GraphBuilder,
    image: Node,
    at: tuple[int, int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
) -> Node:
    """One element of every window, [B, C, Ho, Wo]; ends count from the far side, for any size."""
    for axis in (0, 1):
        start = at[axis] * dilation[axis]
        missing = (kernel[axis] - 1 - at[axis]) * dilation[axis]
        end = -missing if missing else _TO_THE_END
        image = builder.call(aten.slice.Tensor, image, axis + 2, start, end, stride[axis])
    return image

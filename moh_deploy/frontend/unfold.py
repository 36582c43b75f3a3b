"""Sliding windows (`unfold`, im2col) as slices of the padded image.

The exporter's own translation gathers every window element by index, which is the slowest operator of such a model. The window's taps
are strided slices of one padded image; nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from onnxscript import opset18 as ops
from onnxscript.tensor import Tensor as Value

_TO_THE_END = 2**63 - 1


def translate_im2col(
    image: Value,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """Translate `aten::im2col`.

    Args:
        image: [B, C, H, W].

    Returns:
        [B, C*kh*kw, L], L windows in row-major order.
    """
    top, left = padding
    padded = ops.Pad(image, _vector([0, 0, top, left, 0, 0, top, left])) if any(padding) else image
    taps = [
        _tap(padded, (row, column), kernel_size, dilation, stride)
        for row in range(kernel_size[0])
        for column in range(kernel_size[1])
    ]
    stacked = ops.Concat(*taps, axis=2)  # [B, C, kh*kw, L]
    shape = ops.Concat(
        ops.Shape(stacked, start=0, end=1),
        _vector([-1]),
        ops.Shape(stacked, start=3, end=4),
        axis=0,
    )
    return cast(Value, ops.Reshape(stacked, shape))


def _tap(
    padded: Value,
    at: tuple[int, int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """One element of every window, [B, C, 1, L]: ends count from the far side, so that the image may have any size."""
    starts = [index * step for index, step in zip(at, dilation, strict=True)]
    beyond = [
        (extent - 1 - index) * step
        for index, extent, step in zip(at, kernel_size, dilation, strict=True)
    ]
    ends = [-missing if missing else _TO_THE_END for missing in beyond]
    tap = ops.Slice(padded, _vector(starts), _vector(ends), _vector([2, 3]), _vector(stride))
    # [B, C, Ho, Wo] -> [B, C, 1, Ho*Wo]
    return cast(Value, ops.Unsqueeze(ops.Reshape(tap, _vector([0, 0, -1])), _vector([2])))


def _vector(numbers: Sequence[int]) -> Value:
    return cast(Value, ops.Constant(value_ints=list(numbers)))

"""MoHTokenConv: a depthwise convolution over tokens that are the pixels of an image.

    Y[y, x, c] = act(bias[c] + sum over i, j of W[c, i, j] * X[y + i - kh//2, x + j - kw//2, c])

with input_bias added to X, then X = 0 outside the image, act(v) = v or v * (1 + erf(v / sqrt(2))) /
2, and Y times the second half of the channels of X if gated.

Source: the convolution in the feed-forward layers of PVT v2 (arXiv 2106.13797) and, gated, of
TransNeXt (arXiv 2311.17132, section 3.3, convolutional GLU).
"""

from __future__ import annotations

from math import erf

import numpy as np

from moh_deploy.ops import op_names
from moh_deploy.ops.spec import FLAG, Arrays, Attributes, AttributeSpec, OpInput, OpSpec, OutputSpec
from moh_deploy.ops.token_conv_function import function_body, variant_of
from moh_deploy.ops.token_conv_shapes import token_conv_shape_rule


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute MoHTokenConv in float64, one pixel at a time.

    Args:
        inputs: X [B, height*width, C], twice the channels if gated; W [C, 1, kh, kw]; bias [C] or
            None; input_bias, as long as a token, or None.
        attributes: All attributes of the op.

    Returns:
        Y [B, height*width, C] in float64.
    """
    given = [None if array is None else array.astype(np.float64) for array in inputs]
    tokens, weight, bias, input_bias = (*given, None, None)[:4]
    assert tokens is not None
    assert weight is not None
    if input_bias is not None:
        # Before the padding: outside of the image X stays 0.
        tokens = tokens + input_bias
    height, width = int(attributes["height"]), int(attributes["width"])
    channels = int(attributes["channels"])
    # [B, height * width, C or 2*C] to [B, height, width, ...]: tokens are pixels row by row.
    image = tokens.reshape(-1, height, width, tokens.shape[2])
    result = np.empty((len(image), height, width, channels))
    for b, y, x in np.ndindex(result.shape[:3]):
        # Depthwise: channel c sees its own kernel W[c, 0] alone.
        result[b, y, x] = _pixel(image[b, ..., :channels], weight[:, 0], y, x)
    if bias is not None:
        result += bias
    if attributes["activation"] == "gelu":
        result *= (1 + _erf(result / np.sqrt(2))) / 2
    if attributes["gated"]:
        # The second half of X, not convolved and not activated.
        result *= image[..., channels:]
    return (result.reshape(len(image), height * width, channels),)


_erf = np.vectorize(erf, otypes=[np.float64])


def _pixel(image: np.ndarray, weight: np.ndarray, y: int, x: int) -> np.ndarray:
    """The sum over the neighbours [C] of one pixel of an image [H, W, C]."""
    height, width, channels = image.shape
    total = np.zeros(channels)
    for i, j in np.ndindex(weight.shape[1:]):
        # The centre of the kernel lies on the pixel.
        row, column = y + i - weight.shape[1] // 2, x + j - weight.shape[2] // 2
        if 0 <= row < height and 0 <= column < width:
            total += weight[:, i, j] * image[row, column]
    return total


MOH_TOKEN_CONV = OpSpec(
    name=op_names.TOKEN_CONV,
    doc="Depthwise convolution of tokens that are the pixels of an image, row by row.",
    inputs=(
        OpInput("X", "[B, height*width, C]; [B, height*width, 2*C] if gated."),
        OpInput("W", "[C, 1, kh, kw], as in `Conv` with `C` groups; `kh` and `kw` are odd."),
        OpInput("bias", "[C]. Absent: 0.", optional=True),
        OpInput(
            "input_bias",
            "As long as a token of `X`. Absent: 0. What the product before would add to all "
            "activations in a pass of its own; not added outside of the image.",
            optional=True,
        ),
    ),
    outputs=(OutputSpec("Y", "[B, height*width, C]."),),
    attributes=(
        AttributeSpec("channels", "`C`.", at_least=1),
        AttributeSpec("height", "Rows of the image.", at_least=1),
        AttributeSpec("width", "Pixels of a row.", at_least=1),
        AttributeSpec(
            "activation",
            "Behind the bias. gelu: `v * (1 + erf(v / sqrt(2))) / 2`, not its approximation by "
            "tanh.",
            "string",
            default="none",
            choices=("none", "gelu"),
        ),
        AttributeSpec(
            "gated",
            "1: the result is multiplied by the second half of the channels of `X`.",
            default=0,
            choices=FLAG,
        ),
    ),
    reference=reference,
    shape_rule=token_conv_shape_rule,
    variant=variant_of,
    body=function_body,
)

"""MoHTokenConv: a depthwise convolution over tokens that are the pixels of an image.

    Y[y, x, c] = act(bias[c] + sum over i, j of W[c, i, j] * X[y + i - kh//2, x + j - kw//2, c])

with input_bias added to X, then X = 0 outside the image, act(v) = v or v * (1 + erf(v / sqrt(2))) /
2, and Y times the second half of the channels of X if gated.

Source: the convolution in the feed-forward layers of PVT v2 (arXiv 2106.13797) and, gated, of
TransNeXt (arXiv 2311.17132, section 3.3, convolutional GLU).
"""

from dataclasses import dataclass
from math import erf

import numpy as np
import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names, spec
from moh_deploy.ops.spec import Arrays, Attributes, OpSpec, TensorType, TensorTypes

# MoHTokenConv as an ONNX function in standard ops: what runs wherever no kernel is installed.


@dataclass(frozen=True)
class TokenConvVariant(spec.BodyVariant):
    """Selects one body of MoHTokenConv."""

    bias: bool  # there is a bias
    input_bias: bool  # there is one of the input
    gelu: bool  # the activation is gelu; else the identity
    gated: bool  # the result is multiplied by the second half of the channels


def variant_of(inputs: TensorTypes, attributes: Attributes) -> TokenConvVariant:
    """Return the variant that a node needs; the node must satisfy the shape rule."""
    # Absent inputs at the end of a node are not listed at all.
    bias, input_bias = (*inputs[2:], None, None)[:2]
    return TokenConvVariant(
        bias=bias is not None,
        input_bias=input_bias is not None,
        gelu=attributes["activation"] == "gelu",
        gated=bool(attributes["gated"]),
    )


def function_body(variant: TokenConvVariant, *, opset: int) -> onnx.FunctionProto:
    """Build the body of MoHTokenConv for one variant."""
    # Before input_bias the bias has to be a parameter, whether it is read or not.
    biases = ", bias, input_bias" if variant.input_bias else ", bias" if variant.bias else ""
    signature = f"MoHTokenConv <channels, height, width, activation, gated> (X, W{biases}) => (Y)"
    # Y [B, N, C] in the dtype of X.
    gated = "Mul (activated, gate)" if variant.gated else "Identity (activated)"
    last = f"gated_float = {gated} Y = CastLike (gated_float, X)"
    steps = [_tokens(variant), _convolved(variant), _activated(variant), last]
    return spec.parsed_function(signature, steps, opset=opset)


def _tokens(variant: TokenConvVariant) -> str:
    """tokens [B, N, C], and gate [B, N, C] if gated, in float32."""
    features = "features = Cast <to = 1> (X)"
    # Before the convolution, so that padding outside of the image stays 0.
    if variant.input_bias:
        features = """
            unbiased = Cast <to = 1> (X)
            input_bias_float = Cast <to = 1> (input_bias)
            features = Add (unbiased, input_bias_float)
        """
    # [B, N, 2*C] to two of [B, N, C].
    if not variant.gated:
        return f"{features} tokens = Identity (features)"
    return f"{features} tokens, gate = Split <axis = -1, num_outputs = 2> (features)"


def _convolved(variant: TokenConvVariant) -> str:
    """convolved [B, N, C]."""
    # Conv takes [B, C, height, width]: the C channels are its groups, each with a kernel of its
    # own.
    bias, argument = (
        ("bias_float = Cast <to = 1> (bias)", ", bias_float") if variant.bias else ("", "")
    )
    return f"""
        height_value = Constant <value_int: int = @height> ()
        width_value = Constant <value_int: int = @width> ()
        one_element = Constant <value_ints = [1]> ()
        same = Constant <value_ints = [0, 0]> ()
        rows = Reshape (height_value, one_element)
        columns = Reshape (width_value, one_element)
        pixels = Mul (rows, columns)
        image_shape = Concat <axis = 0> (same, rows, columns)
        flat_shape = Concat <axis = 0> (same, pixels)
        weight = Cast <to = 1> (W)
        {bias}
        tokens_BCN = Transpose <perm = [0, 2, 1]> (tokens)
        image = Reshape (tokens_BCN, image_shape)
        convolved_image = Conv <auto_pad = "SAME_UPPER", group: int = @channels>
            (image, weight{argument})
        convolved_BCN = Reshape (convolved_image, flat_shape)
        convolved = Transpose <perm = [0, 2, 1]> (convolved_BCN)
    """


def _activated(variant: TokenConvVariant) -> str:
    """activated [B, N, C]."""
    # v * (1 + erf(v / sqrt(2))) / 2, spelt out: Gelu is an operator from opset 20 on only.
    if not variant.gelu:
        return "activated = Identity (convolved)"
    return """
        one = Constant <value_float = 1.0> ()
        half = Constant <value_float = 0.5> ()
        sqrt_half = Constant <value_float = 0.70710678118654752> ()
        scaled = Mul (convolved, sqrt_half)
        erf = Erf (scaled)
        twice_share = Add (erf, one)
        share = Mul (twice_share, half)
        activated = Mul (convolved, share)
    """


# The shape rule of MoHTokenConv: the type of the output, and what does not fit together.

_OP = op_names.TOKEN_CONV


def token_conv_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of Y.

    Args:
        inputs: Types of X, W, bias and input_bias, None for each absent bias.
    """
    tokens, weight, bias, input_bias = (*inputs, None, None, None, None)[:4]
    tokens, weight = spec.required(_OP, "X", tokens), spec.required(_OP, "W", weight)
    spec.check_tensor(_OP, "X", tokens, spec.FLOAT_TYPES, (3,))
    others = ("W", weight, 4), ("bias", bias, 1), ("input_bias", input_bias, 1)
    for name, tensor, rank in others:
        if tensor is not None:
            spec.check_tensor(_OP, name, tensor, (tokens.dtype,), (rank,))

    channels = int(attributes["channels"])
    num_tokens = int(attributes["height"]) * int(attributes["width"])
    # Gated: the second half of the channels is the gate, and is not convolved.
    halves = 2 if attributes["gated"] else 1
    # Tokens are pixels row by row: [B, height * width, halves * C].
    spec.check_equal(_OP, "number of tokens of X", tokens.shape[1], num_tokens)
    spec.check_equal(_OP, "last size of X", tokens.shape[2], halves * channels)
    spec.check_equal(_OP, "first size of W", weight.shape[0], channels)
    spec.check_equal(_OP, "second size of W", weight.shape[1], 1)
    for side, extent in zip(("height", "width"), weight.shape[2:], strict=True):
        # An even kernel has no centre that could lie on the pixel.
        if isinstance(extent, int) and extent % 2 == 0:
            raise ExportError(f"{_OP}: kernel {side} is {extent}; expected an odd number.")
    if bias is not None:
        spec.check_equal(_OP, "size of bias", bias.shape[0], channels)
    if input_bias is not None:
        spec.check_equal(_OP, "size of input_bias", input_bias.shape[0], halves * channels)
    # Fixed by the attributes where the input does not know its number of tokens.
    shape = (tokens.shape[0], spec.known(tokens.shape[1], num_tokens), channels)
    return (TensorType(tokens.dtype, shape),)


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute MoHTokenConv in float64, one pixel at a time.

    Args:
        inputs: X [B, height*width, C], twice the channels if gated; W [C, 1, kh, kw]; bias [C] or
            None; input_bias, as long as a token, or None.

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
        spec.OpInput("X", "[B, height*width, C]; [B, height*width, 2*C] if gated."),
        spec.OpInput("W", "[C, 1, kh, kw], as in `Conv` with `C` groups; `kh` and `kw` are odd."),
        spec.OpInput("bias", "[C]. Absent: 0.", optional=True),
        spec.OpInput(
            "input_bias",
            "As long as a token of `X`. Absent: 0. What the product before would add to all "
            "activations in a pass of its own; not added outside of the image.",
            optional=True,
        ),
    ),
    outputs=(spec.OutputSpec("Y", "[B, height*width, C]."),),
    attributes=(
        spec.AttributeSpec("channels", "`C`.", at_least=1),
        spec.AttributeSpec("height", "Rows of the image.", at_least=1),
        spec.AttributeSpec("width", "Pixels of a row.", at_least=1),
        spec.AttributeSpec(
            "activation",
            "Behind the bias. gelu: `v * (1 + erf(v / sqrt(2))) / 2`, not its approximation by "
            "tanh.",
            "string",
            default="none",
            choices=("none", "gelu"),
        ),
        spec.AttributeSpec(
            "gated",
            "1: the result is multiplied by the second half of the channels of `X`.",
            default=0,
            choices=spec.FLAG,
        ),
    ),
    reference=reference,
    shape_rule=token_conv_shape_rule,
    variant=variant_of,
    body=function_body,
)

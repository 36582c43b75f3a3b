"""MoHTokenConv as an ONNX function in standard ops: what runs wherever no kernel is installed."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from moh_deploy.ops.function_text import parsed_function
from moh_deploy.ops.spec import Attributes, TensorTypes


@dataclass(frozen=True)
class TokenConvVariant:
    """Selects one body of MoHTokenConv.

    Attributes:
        bias: There is a bias.
        input_bias: There is one of the input.
        gelu: The activation is gelu; else there is none.
        gated: The result is multiplied by the second half of the channels.
    """

    bias: bool
    input_bias: bool
    gelu: bool
    gated: bool

    def key(self) -> str:
        """Return the variant's name, such as `bias_gelu_gated`."""
        # The names of the fields are those of the variant's parts.
        parts = [name for name in ("bias", "input_bias", "gelu", "gated") if getattr(self, name)]
        return "_".join(parts) or "plain"


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
    """Build the body of MoHTokenConv for one variant.

    Args:
        opset: Version of the standard ops that the model imports, 18 or later.

    Raises:
        ExportError: The opset is older than 18.
    """
    # Before input_bias the bias has to be a parameter, whether it is read or not.
    biases = ", bias, input_bias" if variant.input_bias else ", bias" if variant.bias else ""
    signature = f"MoHTokenConv <channels, height, width, activation, gated> (X, W{biases}) => (Y)"
    steps = [_tokens(variant), _convolved(variant), _activated(variant), _gated(variant)]
    return parsed_function(signature, steps, opset=opset)


def _tokens(variant: TokenConvVariant) -> str:
    """tokens [B, N, C], and gate [B, N, C] if gated, in float32."""
    # Before the convolution, so that padding outside of the image stays 0.
    if variant.input_bias:
        features = """
            unbiased = Cast <to = 1> (X)
            input_bias_float = Cast <to = 1> (input_bias)
            features = Add (unbiased, input_bias_float)
        """
    else:
        features = "features = Cast <to = 1> (X)"
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


def _gated(variant: TokenConvVariant) -> str:
    """Y [B, N, C] in the dtype of X."""
    gated = "Mul (activated, gate)" if variant.gated else "Identity (activated)"
    return f"gated_float = {gated} Y = CastLike (gated_float, X)"

"""The shape rule of MoHTokenConv: the type of the output, and what does not fit together."""

from __future__ import annotations

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names
from moh_deploy.ops.shape_checks import check_equal, check_tensor, known, required
from moh_deploy.ops.spec import FLOAT_TYPES, Attributes, TensorType, TensorTypes

_OP = op_names.TOKEN_CONV


def token_conv_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of Y.

    Args:
        inputs: Types of X, W, bias and input_bias, None for each absent bias.
        attributes: All attributes of the op.

    Raises:
        ExportError: An input, size or attribute does not fit the others.
    """
    tokens, weight, bias, input_bias = (*inputs, None, None, None, None)[:4]
    tokens, weight = required(_OP, "X", tokens), required(_OP, "W", weight)
    check_tensor(_OP, "X", tokens, FLOAT_TYPES, (3,))
    others = ("W", weight, 4), ("bias", bias, 1), ("input_bias", input_bias, 1)
    for name, tensor, rank in others:
        if tensor is not None:
            check_tensor(_OP, name, tensor, (tokens.dtype,), (rank,))

    channels = int(attributes["channels"])
    num_tokens = int(attributes["height"]) * int(attributes["width"])
    # Gated: the second half of the channels is the gate, and is not convolved.
    halves = 2 if attributes["gated"] else 1
    # Tokens are pixels row by row: [B, height * width, halves * C].
    check_equal(_OP, "number of tokens of X", tokens.shape[1], num_tokens)
    check_equal(_OP, "last size of X", tokens.shape[2], halves * channels)
    _check_weight(weight, channels)
    if bias is not None:
        check_equal(_OP, "size of bias", bias.shape[0], channels)
    if input_bias is not None:
        check_equal(_OP, "size of input_bias", input_bias.shape[0], halves * channels)
    # Fixed by the attributes where the input does not know its number of tokens.
    shape = (tokens.shape[0], known(tokens.shape[1], num_tokens), channels)
    return (TensorType(tokens.dtype, shape),)


def _check_weight(weight: TensorType, channels: int) -> None:
    check_equal(_OP, "first size of W", weight.shape[0], channels)
    check_equal(_OP, "second size of W", weight.shape[1], 1)
    for side, extent in zip(("height", "width"), weight.shape[2:], strict=True):
        # An even kernel has no centre that could lie on the pixel.
        if isinstance(extent, int) and extent % 2 == 0:
            raise ExportError(f"{_OP}: kernel {side} is {extent}; expected an odd number.")

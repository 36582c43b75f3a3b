"""MoHTokenConv as a torch operator, and its translation to ONNX."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from moh_deploy.frontend.torch_ops.onnx_ops import Value, moh_opset
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES

_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? input_bias, int height, int width, "
    "str activation, bool gated)"
    " -> Tensor"
)


@torch.library.custom_op("moh::token_conv", mutates_args=(), schema=_SCHEMA)
def token_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    height: int,
    width: int,
    activation: str,
    gated: bool,
) -> Tensor:
    """MoHTokenConv, see `docs/ops.md`.

    Args:
        x: [B, height * width, C], or twice the channels if gated.
        weight: [C, 1, kh, kw].
        bias: [C].
        input_bias: As long as a token of x, and added to each.

    Returns:
        [B, height * width, C].
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    channels = weight.shape[0]
    if input_bias is not None:
        x = x.to(precise) + input_bias.to(precise)
    image = x[..., :channels].to(precise).transpose(1, 2)  # [B, C, N]
    convolved = functional.conv2d(
        image.reshape(x.shape[0], channels, height, width),
        weight.to(precise),
        None if bias is None else bias.to(precise),
        padding=(weight.shape[2] // 2, weight.shape[3] // 2),
        groups=channels,
    )
    result = convolved.flatten(2).transpose(1, 2)  # [B, N, C]
    if activation == "gelu":
        result = functional.gelu(result)
    if gated:
        result = result * x[..., channels:].to(precise)
    return result.to(weight.dtype).contiguous()


@token_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    height: int,
    width: int,
    activation: str,
    gated: bool,
) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0])


def translate(
    x: Value,
    weight: Value,
    bias: Value | None,
    input_bias: Value | None,
    height: int,
    width: int,
    activation: str,
    gated: bool,
) -> Value:
    assert weight.shape is not None
    channels = weight.shape[0]
    assert isinstance(channels, int)
    optional = [bias, input_bias]
    while optional and optional[-1] is None:
        optional.pop()
    result = moh_opset.MoHTokenConv(
        x,
        weight,
        *optional,
        channels=channels,
        height=height,
        width=width,
        activation=activation,
        gated=int(gated),
        **PLUGIN_ATTRIBUTES,
    )
    return cast(Value, result)

"""MoHQueryProjection and MoHOutputProjection as torch operators, and their translation to ONNX."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from moh_deploy.frontend.torch_ops.onnx_ops import Value, moh_opset
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES

_SCHEMA = "(Tensor x, Tensor weight, Tensor gates, Tensor? bias, int num_heads) -> Tensor"


@torch.library.custom_op("moh::query_projection", mutates_args=(), schema=_SCHEMA)
def query_projection(
    x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, num_heads: int
) -> Tensor:
    """MoHQueryProjection, see `docs/ops.md`.

    Args:
        x: [B, S, C].
        weight: [C, H*D]: the transpose of a `torch.nn.Linear`'s.
        gates: [B, S, H].
        bias: [H*D].

    Returns:
        [B, S, H*D]. Where a gate is 0 nothing may depend on it, though here it is computed.
    """
    return _linear(x, weight, bias)


@torch.library.custom_op("moh::output_projection", mutates_args=(), schema=_SCHEMA)
def output_projection(
    x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, num_heads: int
) -> Tensor:
    """MoHOutputProjection, see `docs/ops.md`.

    Args:
        x: [B, S, H*D], 0 where the gate is 0.
        weight: [H*D, C]: the transpose of a `torch.nn.Linear`'s.
        gates: [B, S, H].
        bias: [C].

    Returns:
        [B, S, C].
    """
    return _linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    precise = torch.promote_types(x.dtype, torch.float32)
    product = x.to(precise) @ weight.to(precise)
    return (product if bias is None else product + bias.to(precise)).to(x.dtype)


@query_projection.register_fake
@output_projection.register_fake
def _(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, num_heads: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[1])


def translate_query(
    x: Value, weight: Value, gates: Value, bias: Value | None, num_heads: int
) -> Value:
    inputs = (x, weight, gates) if bias is None else (x, weight, gates, bias)
    result = moh_opset.MoHQueryProjection(*inputs, num_heads=num_heads, **PLUGIN_ATTRIBUTES)
    return cast(Value, result)


def translate_output(
    x: Value, weight: Value, gates: Value, bias: Value | None, num_heads: int
) -> Value:
    inputs = (x, weight, gates) if bias is None else (x, weight, gates, bias)
    result = moh_opset.MoHOutputProjection(*inputs, num_heads=num_heads, **PLUGIN_ATTRIBUTES)
    return cast(Value, result)

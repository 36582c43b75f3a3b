"""MoHAggregatedAttention as a torch operator, and its translation to ONNX."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length

from moh_deploy.frontend.torch_ops.onnx_ops import Value, moh_opset
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES

_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor pooled_key, Tensor pooled_value, "
    "Tensor gates, Tensor? query_embedding, Tensor? query_scale, Tensor? window_bias, "
    "Tensor? pooled_bias, Tensor? window_tokens, Tensor? window_offset, int num_heads, "
    "int height, int width, int kernel_height, int kernel_width, bool normalize, float epsilon)"
    " -> Tensor"
)


@torch.library.custom_op("moh::aggregated_attention", mutates_args=(), schema=_SCHEMA)
def aggregated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pooled_key: Tensor,
    pooled_value: Tensor,
    gates: Tensor,
    query_embedding: Tensor | None,
    query_scale: Tensor | None,
    window_bias: Tensor | None,
    pooled_bias: Tensor | None,
    window_tokens: Tensor | None,
    window_offset: Tensor | None,
    num_heads: int,
    height: int,
    width: int,
    kernel_height: int,
    kernel_width: int,
    normalize: bool,
    epsilon: float,
) -> Tensor:
    """MoHAggregatedAttention, see `docs/ops.md`.

    Args:
        query, key, value: [B, N, H*D], N = height * width pixels row by row.
        pooled_key, pooled_value: [B, P, H*D].
        gates: [B, N, H]; a head whose gate is 0 gives 0.
        query_embedding: [H, D], added to the queries of the scores.
        query_scale: [H, N], their factor.
        window_bias: [H, L], L = kernel_height * kernel_width, added to the window's scores.
        pooled_bias: [H, N, P], added to the pooled scores.
        window_tokens: [H, D, L], whose product with a query is added to the window's weights.
        window_offset: [H, L], added to the window's weights.

    Returns:
        [B, N, H*D].
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    q, k, v, pk, pv = (
        _split_heads(x.to(precise), num_heads)
        for x in (query, key, value, pooled_key, pooled_value)
    )
    if normalize:
        q, k, pk = (unit_length(x, dim=-1, eps=epsilon) for x in (q, k, pk))
    neighbours, inside = _neighbours(height, width, kernel_height, kernel_width)  # [N, L]
    neighbours, inside = neighbours.to(q.device), inside.to(q.device)

    s = _plus(q, query_embedding)
    s = s if query_scale is None else s * query_scale.to(precise).unsqueeze(-1)
    window = _plus((k[:, :, neighbours] @ s.unsqueeze(-1)).squeeze(-1), window_bias)
    window = window.masked_fill(~inside, float("-inf"))  # [B, H, N, L]
    pooled = s @ pk.transpose(-2, -1)  # [B, H, N, P]
    pooled = pooled if pooled_bias is None else pooled + pooled_bias.to(precise)
    weights = torch.cat([window, pooled], dim=-1).softmax(dim=-1)

    num_places = kernel_height * kernel_width
    window, pooled = weights[..., :num_places], weights[..., num_places:]
    window = window if window_tokens is None else window + q @ window_tokens.to(precise)
    window = _plus(window, window_offset)
    beside = v[:, :, neighbours].masked_fill(~inside.unsqueeze(-1), 0.0)  # [B, H, N, L, D]
    heads = (window.unsqueeze(-2) @ beside).squeeze(-2) + pooled @ pv
    gate = gates.to(precise).transpose(1, 2).unsqueeze(-1)  # [B, H, N, 1]
    gated = torch.where(gate == 0, 0.0, heads * gate)
    return gated.transpose(1, 2).flatten(2).to(query.dtype)


def _split_heads(packed: Tensor, num_heads: int) -> Tensor:
    """[B, N, H*D] to [B, H, N, D]."""
    return packed.reshape(*packed.shape[:2], num_heads, -1).transpose(1, 2)


def _plus(tokens: Tensor, term: Tensor | None) -> Tensor:
    """Add what a head adds to each of its tokens: [H, X] to [B, H, N, X]."""
    return tokens if term is None else tokens + term.to(tokens.dtype).unsqueeze(1)


def _neighbours(
    height: int, width: int, kernel_height: int, kernel_width: int
) -> tuple[Tensor, Tensor]:
    """The token at each place of each window, 0 outside the image, and where it is inside: [N, L].

    Places are counted row by row, as `torch.nn.functional.unfold` does.
    """
    rows = torch.arange(height)[:, None] + torch.arange(kernel_height) - kernel_height // 2
    columns = torch.arange(width)[:, None] + torch.arange(kernel_width) - kernel_width // 2
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]  # [height, width, kh, kw]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    tokens = torch.where(inside, rows * width + columns, 0)
    return tokens.flatten(2).flatten(0, 1), inside.flatten(2).flatten(0, 1)


@aggregated_attention.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


def translate(
    query: Value,
    key: Value,
    value: Value,
    pooled_key: Value,
    pooled_value: Value,
    gates: Value,
    query_embedding: Value | None,
    query_scale: Value | None,
    window_bias: Value | None,
    pooled_bias: Value | None,
    window_tokens: Value | None,
    window_offset: Value | None,
    num_heads: int,
    height: int,
    width: int,
    kernel_height: int,
    kernel_width: int,
    normalize: bool,
    epsilon: float,
) -> Value:
    optional = [
        query_embedding,
        query_scale,
        window_bias,
        pooled_bias,
        window_tokens,
        window_offset,
    ]
    while optional and optional[-1] is None:
        optional.pop()
    result = moh_opset.MoHAggregatedAttention(
        query,
        key,
        value,
        pooled_key,
        pooled_value,
        gates,
        *optional,
        num_heads=num_heads,
        height=height,
        width=width,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        normalize=int(normalize),
        epsilon=epsilon,
        **PLUGIN_ATTRIBUTES,
    )
    return cast(Value, result)

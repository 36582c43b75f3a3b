"""MoHAttention as a torch operator, and its translation to ONNX."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from moh_deploy.frontend.torch_ops.onnx_ops import Value, moh_opset
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES

_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor gates, Tensor? attn_mask, "
    "int q_num_heads, int kv_num_heads, float scale, bool is_causal) -> Tensor"
)


@torch.library.custom_op("moh::attention", mutates_args=(), schema=_SCHEMA)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gates: Tensor,
    attn_mask: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float,
    is_causal: bool,
) -> Tensor:
    """MoHAttention, see `docs/ops.md`.

    Args:
        query: [B, S, Hq*D] or [B, Hq, S, D].
        key, value: [B, T, Hkv*D] or [B, Hkv, T, D].
        gates: [B, S, Hq]; a head whose gate is 0 gives 0.
        attn_mask: bool (True may attend) or additive, broadcastable to [B, Hq, S, T].

    Returns:
        [B, S, Hq*Dv] or [B, Hq, S, Dv], as the query.
    """
    packed = query.dim() == 3
    if packed:
        query = _split_heads(query, q_num_heads)
        key, value = _split_heads(key, kv_num_heads), _split_heads(value, kv_num_heads)
    groups = q_num_heads // kv_num_heads
    precise = torch.promote_types(query.dtype, torch.float32)
    wide_key = key.to(precise).repeat_interleave(groups, dim=1)
    wide_value = value.to(precise).repeat_interleave(groups, dim=1)
    scores = query.to(precise) @ wide_key.transpose(-2, -1) * scale  # [B, Hq, S, T]
    weights = _masked_softmax(scores, attn_mask, is_causal)
    gate = gates.to(precise).transpose(1, 2).unsqueeze(-1)  # [B, Hq, S, 1]
    gated = torch.where(gate == 0, 0.0, weights @ wide_value * gate).to(query.dtype)
    return gated.transpose(1, 2).flatten(2) if packed else gated


def _split_heads(packed: Tensor, num_heads: int) -> Tensor:
    """[B, S, H*D] to [B, H, S, D]."""
    return packed.reshape(*packed.shape[:2], num_heads, -1).transpose(1, 2)


def _masked_softmax(scores: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask.to(scores.dtype)
    if is_causal:
        seq_len, kv_len = scores.shape[-2:]
        visible = torch.ones(seq_len, kv_len, dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~visible.tril(kv_len - seq_len), float("-inf"))
    if attn_mask is None and not is_causal:
        return scores.softmax(dim=-1)
    hidden = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.softmax(dim=-1).masked_fill(hidden, 0.0)


@attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gates: Tensor,
    attn_mask: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float,
    is_causal: bool,
) -> Tensor:
    if query.dim() == 3:
        head_dim = value.shape[2] // kv_num_heads
        return query.new_empty(query.shape[0], query.shape[1], q_num_heads * head_dim)
    return query.new_empty(query.shape[0], q_num_heads, query.shape[2], value.shape[3])


def translate(
    query: Value,
    key: Value,
    value: Value,
    gates: Value,
    attn_mask: Value | None,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float,
    is_causal: bool,
) -> Value:
    mask = () if attn_mask is None else (attn_mask,)
    result = moh_opset.MoHAttention(
        query,
        key,
        value,
        gates,
        *mask,
        q_num_heads=q_num_heads,
        kv_num_heads=kv_num_heads,
        scale=scale,
        is_causal=int(is_causal),
        **PLUGIN_ATTRIBUTES,
    )
    return cast(Value, result)

"""The ops of `moh_deploy.ops` as torch operators, so that a rewritten program can be run, checked
and exported.

They are dense and written for clarity: in torch they only have to be right. Importing this module
    registers `moh::attention` and
`moh::router`.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ATTENTION_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor gates, Tensor? attn_mask, "
    "int q_num_heads, int kv_num_heads, float scale, bool is_causal) -> Tensor"
)
_ROUTER_SCHEMA = (
    "(Tensor? routed_logits, Tensor? shared_logits, Tensor? stage_logits, "
    "int top_k, int num_shared_heads, str gate_mode) -> Tensor"
)


@torch.library.custom_op("moh::attention", mutates_args=(), schema=_ATTENTION_SCHEMA)
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
    hidden = scores.amax(dim=-1, keepdim=True) == float("-inf")
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


@torch.library.custom_op("moh::router", mutates_args=(), schema=_ROUTER_SCHEMA)
def router(
    routed_logits: Tensor | None,
    shared_logits: Tensor | None,
    stage_logits: Tensor | None,
    top_k: int,
    num_shared_heads: int,
    gate_mode: str,
) -> Tensor:
    """MoHRouter, see `docs/ops.md`.

    Args:
        routed_logits: [B, S, R], or None where all heads are shared.
        shared_logits: [B, S, Sh], or None for at most one shared head or mask gates.
        stage_logits: [B, S, 2]: the first stage's weight of shared and of routed heads; None for
            no first stage.

    Returns:
        Gates [B, S, Sh + R], shared heads first.
    """
    present = next(x for x in (routed_logits, shared_logits, stage_logits) if x is not None)
    precise = torch.promote_types(present.dtype, torch.float32)
    gates: list[Tensor] = []
    if num_shared_heads and shared_logits is not None:
        gates.append(shared_logits.to(precise).softmax(dim=-1) * num_shared_heads)
    elif num_shared_heads:
        gates.append(torch.ones(*present.shape[:-1], num_shared_heads, dtype=precise))
    if routed_logits is not None:
        gates.append(_routed_gates(routed_logits.to(precise).softmax(dim=-1), top_k, gate_mode))
    if stage_logits is not None:
        stages = stage_logits.to(precise).softmax(dim=-1) * 2
        gates = [gate * stages[..., i : i + 1] for i, gate in enumerate(gates)]
    return torch.cat(gates, dim=-1).to(present.dtype)


def _routed_gates(scores: Tensor, top_k: int, gate_mode: str) -> Tensor:
    order = scores.sort(dim=-1, descending=True, stable=True).indices  # ties: lowest head first
    chosen = torch.zeros_like(scores).scatter(-1, order[..., :top_k], 1.0)
    if gate_mode == "mask":
        return chosen
    kept = scores * chosen
    eps = torch.finfo(torch.float32).eps
    return kept / kept.sum(dim=-1, keepdim=True).clamp(min=eps) * top_k


@router.register_fake
def _(
    routed_logits: Tensor | None,
    shared_logits: Tensor | None,
    stage_logits: Tensor | None,
    top_k: int,
    num_shared_heads: int,
    gate_mode: str,
) -> Tensor:
    present = next(x for x in (routed_logits, shared_logits, stage_logits) if x is not None)
    candidates = 0 if routed_logits is None else routed_logits.shape[-1]
    return present.new_empty(*present.shape[:-1], num_shared_heads + candidates)

"""Compute the ops in torch, where their float64 reference will not do.

They are dense and written for clarity: in torch they only have to be right. They compute in float64
where their inputs are, as the proof of a router needs it, and else in float32.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moh_deploy import ops


def aggregated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pooled_key: Tensor,
    pooled_value: Tensor,
    gates: Tensor,
    *rest: Any,
) -> Tensor:
    """Each pixel attends to its window and to the pooled image, in one softmax: [B, N, H*D]."""
    # Where, not a product alone: a closed gate silences NaN, too.
    heads = aggregated_heads(query, key, value, pooled_key, pooled_value, *rest)
    gate = gates.to(heads.dtype).transpose(1, 2).unsqueeze(-1)  # [B, H, N, 1]
    gated = torch.where(gate == 0, 0.0, heads * gate)
    return gated.transpose(1, 2).flatten(2).to(query.dtype)


def aggregated_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pooled_key: Tensor,
    pooled_value: Tensor,
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
    """Return the heads before they are gated, in float32 at least: [B, H, N, D]."""
    precise = torch.promote_types(query.dtype, torch.float32)
    q, k, v, pk, pv = (
        _split_heads(x.to(precise), num_heads)
        for x in (query, key, value, pooled_key, pooled_value)
    )
    if normalize:
        q, k, pk = (functional.normalize(x, dim=-1, eps=epsilon) for x in (q, k, pk))
    k_windows, v_windows = (_windows(x, height, width, kernel_height, kernel_width) for x in (k, v))
    inside = _inside(height, width, kernel_height, kernel_width).to(q.device)  # [N, L]

    s = _plus(q, query_embedding)
    s = s if query_scale is None else s * query_scale.to(precise).unsqueeze(-1)
    window = _plus((k_windows @ s.unsqueeze(-1)).squeeze(-1), window_bias)
    window = window.masked_fill(~inside, float("-inf"))  # [B, H, N, L]
    pooled = s @ pk.transpose(-2, -1)  # [B, H, N, P]
    pooled = pooled if pooled_bias is None else pooled + pooled_bias.to(precise)
    weights = torch.cat([window, pooled], dim=-1).softmax(dim=-1)

    num_places = kernel_height * kernel_width
    window, pooled = weights[..., :num_places], weights[..., num_places:]
    window = window if window_tokens is None else window + q @ window_tokens.to(precise)
    window = _plus(window, window_offset)
    return (window.unsqueeze(-2) @ v_windows).squeeze(-2) + pooled @ pv


def _plus(tokens: Tensor, term: Tensor | None) -> Tensor:
    """Add what a head adds to each of its tokens: [H, X] to [B, H, N, X]."""
    return tokens if term is None else tokens + term.to(tokens.dtype).unsqueeze(1)


def _windows(x: Tensor, height: int, width: int, kernel_height: int, kernel_width: int) -> Tensor:
    """The tokens in the window of each pixel, zeros outside the image: [B, H, N, L, D]."""
    batch, heads, tokens, channels = x.shape
    image = x.transpose(2, 3).reshape(batch, heads * channels, height, width)
    kernel = (kernel_height, kernel_width)
    # [B, H*D*L, N], the places of a window row by row.
    cut = functional.unfold(image, kernel, padding=(kernel_height // 2, kernel_width // 2))
    places = kernel_height * kernel_width
    return cut.reshape(batch, heads, channels, places, tokens).permute(0, 1, 4, 3, 2)


def _inside(height: int, width: int, kernel_height: int, kernel_width: int) -> Tensor:
    """Which places of each window are in the image: [N, L], row by row as `unfold` counts."""
    rows = torch.arange(height)[:, None] + torch.arange(kernel_height) - kernel_height // 2
    columns = torch.arange(width)[:, None] + torch.arange(kernel_width) - kernel_width // 2
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]  # [height, width, kh, kw]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return inside.flatten(2).flatten(0, 1)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gates: Tensor,
    attn_mask: Tensor | None,
    nonpad_kv_seqlen: Tensor | None,
    key_ranges: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float,
    is_causal: bool,
) -> Tensor:
    """Attention times gates: [B, S, Hq*Dv] or [B, Hq, S, Dv], as the query."""
    packed = query.dim() == 3
    if packed:
        query = _split_heads(query, q_num_heads)
        key, value = _split_heads(key, kv_num_heads), _split_heads(value, kv_num_heads)
    groups = q_num_heads // kv_num_heads
    precise = torch.promote_types(query.dtype, torch.float32)
    wide_key = key.to(precise).repeat_interleave(groups, dim=1)
    wide_value = value.to(precise).repeat_interleave(groups, dim=1)
    scores = query.to(precise) @ wide_key.transpose(-2, -1) * scale  # [B, Hq, S, T]
    in_reach = seen_by_position(query, key, nonpad_kv_seqlen, key_ranges, is_causal=is_causal)
    weights = _masked_softmax(scores, attn_mask, in_reach)
    if nonpad_kv_seqlen is not None:
        # What lies behind the filled keys may be anything: a weight of 0 does not silence a NaN.
        beyond = torch.arange(key.shape[2], device=key.device) >= nonpad_kv_seqlen[:, None]
        wide_value = wide_value.masked_fill(beyond[:, None, :, None], 0.0)
    gate = gates.to(precise).transpose(1, 2).unsqueeze(-1)  # [B, Hq, S, 1]
    gated = torch.where(gate == 0, 0.0, weights @ wide_value * gate).to(query.dtype)
    return gated.transpose(1, 2).flatten(2) if packed else gated


def _split_heads(packed: Tensor, num_heads: int) -> Tensor:
    """[B, S, H*D] to [B, H, S, D]."""
    return packed.reshape(*packed.shape[:2], num_heads, -1).transpose(1, 2)


def seen_by_position(
    query: Tensor,
    key: Tensor,
    nonpad_kv_seqlen: Tensor | None,
    key_ranges: Tensor | None,
    *,
    is_causal: bool,
) -> Tensor | None:
    """Tell which keys are filled, in a query's range and not in its future; None where all are.

    Args:
        query, key: [B, Hq, S, D] and [B, Hkv, T, D].

    Returns:
        bool, [S, T], [1 or B, 1, S, T] or [B, 1, 1, T].
    """
    seq_len, kv_len = query.shape[2], key.shape[2]
    key_position = torch.arange(kv_len, device=key.device)
    query_index = torch.arange(seq_len, device=key.device)[:, None]
    conditions = []
    if is_causal or nonpad_kv_seqlen is not None:
        # The last query stands at the last filled key.
        filled = kv_len if nonpad_kv_seqlen is None else nonpad_kv_seqlen[:, None, None, None]
        end = query_index + filled - seq_len + 1 if is_causal else filled
        conditions.append(key_position < end)
    if key_ranges is not None:
        first, end = key_ranges[:, None, :, :1], key_ranges[:, None, :, 1:]
        conditions.append((key_position >= first) & (key_position < end))
    return functools.reduce(torch.logical_and, conditions) if conditions else None


def _masked_softmax(scores: Tensor, attn_mask: Tensor | None, in_reach: Tensor | None) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask.to(scores.dtype)
    if in_reach is not None:
        scores = scores.masked_fill(~in_reach, float("-inf"))
    if attn_mask is None and in_reach is None:
        return scores.softmax(dim=-1)
    # softmax over nothing but -inf is NaN: such a query attends to nothing.
    hidden = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.softmax(dim=-1).masked_fill(hidden, 0.0)


def projection(
    x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, num_heads: int
) -> Tensor:
    """X W + bias, [B, S, columns of W], also where a query projection leaves it unspecified."""
    return _linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    precise = torch.promote_types(x.dtype, torch.float32)
    product = x.to(precise) @ weight.to(precise)
    return (product if bias is None else product + bias.to(precise)).to(x.dtype)


def router(
    routed_logits: Tensor | None,
    shared_logits: Tensor | None,
    stage_logits: Tensor | None,
    top_k: int,
    num_shared_heads: int,
    gate_mode: str,
) -> Tensor:
    """Gates [B, S, Sh + R] of the shared heads, then of the routed ones."""
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
        # Of the shared heads, then of the routed ones.
        first = 0 if num_shared_heads else 1
        gates = [gate * stages[..., i : i + 1] for i, gate in enumerate(gates, start=first)]
    return torch.cat(gates, dim=-1).to(present.dtype)


def _routed_gates(scores: Tensor, top_k: int, gate_mode: str) -> Tensor:
    order = scores.sort(dim=-1, descending=True, stable=True).indices  # ties: lowest head first
    chosen = torch.zeros_like(scores).scatter(-1, order[..., :top_k], 1.0)
    if gate_mode == "mask":
        return chosen
    kept = scores * chosen
    eps = torch.finfo(torch.float32).eps
    return kept / kept.sum(dim=-1, keepdim=True).clamp(min=eps) * top_k


def token_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    channels: int,
    height: int,
    width: int,
    activation: str,
    gated: bool,
) -> Tensor:
    """A depthwise convolution of tokens that are pixels: [B, height * width, C]."""
    precise = torch.promote_types(x.dtype, torch.float32)
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


BODIES: Mapping[str, Callable[..., Tensor]] = {
    ops.MOH_AGGREGATED_ATTENTION.name: aggregated_attention,
    ops.MOH_ATTENTION.name: attention,
    ops.MOH_OUTPUT_PROJECTION.name: projection,
    ops.MOH_QUERY_PROJECTION.name: projection,
    ops.MOH_ROUTER.name: router,
    ops.MOH_TOKEN_CONV.name: token_conv,
}
"""By op, called with all inputs and all attributes in the order of its spec."""

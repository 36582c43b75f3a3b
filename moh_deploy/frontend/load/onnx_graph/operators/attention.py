"""Attention as one operator: ONNX's own and those that ONNX Runtime fuses.

All of them are written out as one `scaled_dot_product_attention`, or as the operators it stands for
where theirs does more, so that recognition sees what it knows of models in PyTorch.
"""

from typing import cast

import torch
from torch.nn import functional

from moh_deploy.frontend.load.onnx_graph import node_call
from moh_deploy.frontend.torch_ops.bodies import seen_by_position


@node_call.operator("Attention")
def _attention(call: node_call.NodeCall) -> node_call.Result:
    """Attention of operator sets 23 and 24: packed [B, S, H*D] or [B, H, S, D], with a cache that
    grows, or one that is filled to some length."""
    if any(call.node.outputs[3:]):
        raise call.refused("returns its scores, which is not supported")
    query, key, value = (call.tensor(index) for index in range(3))
    packed = query.ndim == 3
    if packed:
        num_heads = call.required("q_num_heads", int)
        num_kv_heads = call.required("kv_num_heads", int)
        query = split_heads(query, num_heads)
        key, value = split_heads(key, num_kv_heads), split_heads(value, num_kv_heads)
    key, value = _behind(call.optional(4), key), _behind(call.optional(5), value)
    mask, causal = call.optional(3), bool(call.attribute("is_causal", 0))
    if call.has(6):
        # As the standard has it since its erratum. A runtime that counts causal positions from the
        # first key computes something else, and then the proof fails.
        lengths = call.tensor(6)
        seen = seen_by_position(query, key, lengths, None, is_causal=causal)
        mask = hidden_by_either(mask, seen)
        causal = False
    heads = attend(
        query,
        key,
        value,
        mask,
        scale=cast("float | None", call.node.attributes.get("scale")),
        # Query i sees keys up to i, counted from the cache's end.
        causal=causal,
        past=call.tensor(4).shape[2] if call.has(4) else 0,
        softcap=call.attribute("softcap", 0.0),
    )
    return merge_heads(heads) if packed else heads, key, value


def hidden_by_either(mask: torch.Tensor | None, seen: torch.Tensor | None) -> torch.Tensor | None:
    """Return a mask that hides what a mask hides, and what is not seen."""
    if mask is None or seen is None:
        return seen if mask is None else mask
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)


def split_heads(packed: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[B, S, H*D] to [B, H, S, D]."""
    batch, length, width = packed.shape
    return packed.reshape(batch, length, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(heads: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] to [B, S, H*D]."""
    return heads.transpose(1, 2).flatten(2)


def _behind(past: torch.Tensor | None, present: torch.Tensor) -> torch.Tensor:
    """Put the keys or values of this call behind those of a cache."""
    return present if past is None else torch.cat([past, present], dim=2)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float | None,
    causal: bool,
    past: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Return softmax(query @ key) @ value of [B, Hq, S, D] and [B, Hkv, T, D].

    Args:
        mask: Broadcasts to [B, Hq, S, T]; False hides a key, a number is added.
        past: ExactNumber of keys that all queries see under a causal mask.
        softcap: Bounds the scores by a tanh; 0 does not.
    """
    if causal and (mask is not None or node_call.is_symbol(past) or past or softcap):
        queries = torch.arange(query.shape[2]).unsqueeze(-1) + past
        visible: torch.Tensor = torch.arange(key.shape[2]) <= queries  # [S, T]
        mask, causal = hidden_by_either(mask, visible), False
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    if not softcap:
        grouped = query.shape[1] != key.shape[1]
        return functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    # Torch has no operator for bounded scores.
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(-2, -1) * (scale or query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ value


@node_call.operator("MultiHeadAttention", domain=node_call.MICROSOFT)
def _multi_head_attention(call: node_call.NodeCall) -> node_call.Result:
    """Query [B, S, H*D], key and value [B, T, H*D], or all as [B, H, T, D] for key and value."""
    num_heads = call.required("num_heads", int)
    query = call.tensor(0)
    if query.ndim != 3 or not call.has(1) or not call.has(2):
        raise call.refused("takes query, key and value packed in one tensor: not supported")
    key, value, bias = call.tensor(1), call.tensor(2), call.optional(3)
    if bias is not None:
        width = query.shape[2]
        query = query + bias[:width]
        if key.ndim == 3:
            key, value = key + bias[width : 2 * width], value + bias[2 * width :]
    q = split_heads(query, num_heads)
    # Keys of a cross-attention's cache come with their heads apart.
    k = key if key.ndim == 4 else split_heads(key, num_heads)
    v = value if value.ndim == 4 else split_heads(value, num_heads)
    past = call.tensor(6).shape[2] if call.has(6) else 0
    k, v = _behind(call.optional(6), k), _behind(call.optional(7), v)
    return _attended(call, q, k, v, padding=4, past=past), k, v


def _attended(
    call: node_call.NodeCall,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    padding: int,
    past: int,
) -> torch.Tensor:
    """Attend with the attributes and the bias that ONNX Runtime's operators share, [B, S, H*D].

    Args:
        padding: Place of the mask of 0 and 1 among the inputs; the bias is the sixth.
    """
    bias, mask = call.optional(5), _key_padding(call, padding, q.dtype)
    if bias is not None:
        mask = bias if mask is None else bias + mask
    scale, causal = call.attribute("scale", 0.0) or None, bool(call.attribute("unidirectional", 0))
    return merge_heads(attend(q, k, v, mask, scale=scale, causal=causal, past=past))


# What ONNX Runtime's attention adds to the score of a key that a mask of 0 hides, unless the node
# says otherwise.
_MASKED = -10000.0


def _key_padding(call: node_call.NodeCall, index: int, dtype: torch.dtype) -> torch.Tensor | None:
    """Return what a mask of 0 and 1 adds to the scores: [B, 1, 1, T] or [B, 1, S, T]."""
    mask = call.optional(index)
    if mask is None:
        return None
    if mask.ndim == 1:
        raise call.refused("takes lengths of padding as its mask, which is not supported")
    wide = mask[:, None, None, :] if mask.ndim == 2 else mask.unsqueeze(1)
    hidden = call.attribute("mask_filter_value", _MASKED)
    return (1.0 - wide.to(dtype)) * hidden


@node_call.operator("Attention", domain=node_call.MICROSOFT)
def _packed_attention(call: node_call.NodeCall) -> node_call.Result:
    """Attention with its projection: input [B, S, C], weight [C, Hq*D + Hk*D + Hv*D]."""
    num_heads = call.required("num_heads", int)
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    packed = x @ weight
    packed = packed if bias is None else packed + bias
    widths = call.ints("qkv_hidden_sizes", [weight.shape[1] // 3] * 3)
    q, k, v = (split_heads(part, num_heads) for part in torch.split(packed, widths, dim=-1))
    if call.attribute("do_rotary", 0):
        raise call.refused("rotates queries and keys by itself, which is not supported")
    past = 0
    if call.has(4):
        cache = call.tensor(4)  # [2, B, H, T, D]
        past, k, v = cache.shape[3], _behind(cache[0], k), _behind(cache[1], v)
    attended = _attended(call, q, k, v, padding=3, past=past)
    return (attended, torch.stack([k, v])) if any(call.node.outputs[1:]) else attended


@node_call.operator("GroupQueryAttention", domain=node_call.MICROSOFT)
def _group_query_attention(call: node_call.NodeCall) -> node_call.Result:
    """Causal attention of decoders: query [B, S, Hq*D], a cache of T tokens, and for each sample
    how many tokens of cache and query there are, less one: the rest is padding, on the right."""
    for name in ("softcap", "smooth_softmax", "k_quant_type", "v_quant_type"):
        given = call.node.attributes.get(name)
        if given and given != "NONE":
            raise call.refused(f"has {name}, which is not supported")
    if call.attribute("local_window_size", -1) != -1:
        raise call.refused("attends to a window of its own, which is not supported")
    if not call.has(1) or not call.has(2):
        raise call.refused("takes query, key and value packed in one tensor: not supported")
    if call.has(9) or call.has(10):
        raise call.refused("takes positions or a bias of its own, which is not supported")
    num_heads = call.required("num_heads", int)
    num_kv_heads = call.required("kv_num_heads", int)
    q = split_heads(call.tensor(0), num_heads)
    k, v = (split_heads(call.tensor(index), num_kv_heads) for index in (1, 2))
    length, past = q.shape[2], call.tensor(3).shape[2] if call.has(3) else 0
    total = call.tensor(5).to(torch.int64) + 1  # [B]
    cached = (total - length).clamp(min=0)  # a prompt may be padded, and has nothing before it
    if call.attribute("do_rotary", 0):
        positions = cached.unsqueeze(-1) + torch.arange(length)  # [B, S]
        cosine, sine = (call.tensor(index)[positions].unsqueeze(1) for index in (7, 8))
        interleaved = bool(call.attribute("rotary_interleaved", 0))
        q, k = (rotate(x, cosine, sine, interleaved=interleaved) for x in (q, k))
    k, v = _behind(call.optional(3), k), _behind(call.optional(4), v)
    new = torch.arange(length)
    seen = new <= new.unsqueeze(-1)  # [S, S]
    seen = seen & (cached.unsqueeze(-1) + new < total.unsqueeze(-1)).unsqueeze(1)  # [B, S, S]
    if call.has(3):
        before = torch.arange(past) < cached.unsqueeze(-1)  # [B, T]
        seen = torch.cat([before.unsqueeze(1).expand(-1, length, -1), seen], dim=-1)
    scale = call.attribute("scale", 0.0) or None
    heads = attend(q, k, v, seen.unsqueeze(1), scale=scale, causal=False)
    if not any(call.node.outputs[1:3]):
        return merge_heads(heads)
    if call.has(3):
        k, v = (_without_gap(tensor, cached, past) for tensor in (k, v))
    return merge_heads(heads), k, v


def _without_gap(joined: torch.Tensor, cached: torch.Tensor, past: int) -> torch.Tensor:
    """Move new keys or values up to the last token of a sample's cache: [B, H, T + S, D]."""
    place = torch.arange(joined.shape[2])
    beyond = place - cached.unsqueeze(-1)  # [B, T + S]
    source = torch.where(beyond < 0, place, past + beyond).clamp(max=joined.shape[2] - 1)
    return joined.gather(2, source[:, None, :, None].expand_as(joined))


@node_call.operator("RotaryEmbedding")
def _rotary_embedding(call: node_call.NodeCall) -> node_call.Result:
    """Operator set 23: x [B, H, S, D] or [B, S, H*D]; caches [B, S, D/2], or tables to look up."""
    x, cosine, sine = (call.tensor(index) for index in range(3))
    positions = call.optional(3)
    if positions is not None:
        cosine, sine = (functional.embedding(positions, table) for table in (cosine, sine))
    return _rotated(call, x, cosine, sine, call.attribute("rotary_embedding_dim", 0))


@node_call.operator("RotaryEmbedding", domain=node_call.MICROSOFT)
def _ort_rotary_embedding(call: node_call.NodeCall) -> node_call.Result:
    """x as above; positions [B, S], or [1] for where the sequence starts; tables [M, D/2]."""
    x, positions = call.tensor(0), call.tensor(1)
    if positions.ndim == 1 and positions.shape[0] == 1:
        positions = positions + torch.arange(x.shape[-2])
    cosine, sine = (table[positions] for table in (call.tensor(2), call.tensor(3)))
    scale = call.attribute("scale", 1.0)
    if scale != 1:
        raise call.refused(f"scales what it rotates by {scale}, which is not supported")
    return _rotated(call, x, cosine, sine, call.attribute("rotary_embedding_dim", 0))


def _rotated(
    call: node_call.NodeCall, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, width: int
) -> torch.Tensor:
    """Rotate the first channels of each head; cosine and sine are [S, D/2] or [B, S, D/2]."""
    packed = x.ndim == 3
    if packed:
        heads = call.attribute("num_heads", 0)
        x = split_heads(x, heads or x.shape[-1] // (2 * cosine.shape[-1]))
    if cosine.ndim == 3:
        cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    interleaved = bool(call.attribute("interleaved", 0))
    turned, kept = (x[..., :width], x[..., width:]) if width else (x, None)
    turned = rotate(turned, cosine, sine, interleaved=interleaved)
    whole = turned if kept is None else torch.cat([turned, kept], dim=-1)
    return merge_heads(whole) if packed else whole


def rotate(
    x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, *, interleaved: bool
) -> torch.Tensor:
    """Turn pairs of channels of x [..., S, D] by angles [..., S, D/2].

    Args:
        interleaved: A pair are neighbours; else channels i and i + D/2.
    """
    half = x.shape[-1] // 2
    cosine, sine = cosine[..., :half], sine[..., :half]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    real, imaginary = first * cosine - second * sine, first * sine + second * cosine
    if interleaved:
        return torch.stack([real, imaginary], dim=-1).flatten(-2)
    return torch.cat([real, imaginary], dim=-1)

"""The ops once more, in torch float64, sharing nothing with the reference."""

import numpy as np
import torch
import torch.nn.functional as F

from moh_deploy.ops.cases import Case, numpy_dtype


def run(case: Case) -> list[np.ndarray]:
    inputs = [None if a is None else _tensor(a) for a in case.inputs()]
    compute = {
        "MoHAggregatedAttention": _aggregated_attention,
        "MoHAttention": _attention,
        "MoHOutputProjection": _projection,
        "MoHMatMulNBits": _nbits_product,
        "MoHOutputProjectionNBits": _nbits_projection,
        "MoHQueryProjection": _projection,
        "MoHQueryProjectionNBits": _nbits_projection,
        "MoHRouter": _router,
        "MoHTokenConv": _token_conv,
    }[case.op]
    with np.errstate(over="ignore"):
        return [compute(inputs, dict(case.attributes)).numpy().astype(numpy_dtype(case.dtype))]


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array if array.dtype == bool else array.astype(np.float64))


def _attention(inputs: list[torch.Tensor | None], attributes: dict) -> torch.Tensor:
    query, key, value, gates, mask, filled, ranges = (*inputs, None, None, None)[:7]
    heads, kv_heads = attributes["q_num_heads"], attributes["kv_num_heads"]
    merged = query.dim() == 3
    if merged:
        query = _by_head(query, heads).transpose(1, 2)
        key = _by_head(key, kv_heads).transpose(1, 2)
        value = _by_head(value, kv_heads).transpose(1, 2)
    key = key.repeat_interleave(heads // kv_heads, dim=1)
    value = value.repeat_interleave(heads // kv_heads, dim=1)

    hidden = torch.zeros(*query.shape[:3], key.shape[2], dtype=torch.bool)
    room = [0] * len(query)
    if filled is not None:
        # As if each sequence stood at the end of the keys, behind others that nobody sees.
        room = [key.shape[2] - int(length) for length in filled]
        key, value = (_moved_back(part, room, axis=2) for part in (key, value))
        hidden |= (torch.arange(key.shape[2]) < torch.tensor(room)[:, None])[:, None, None]
        mask = None if mask is None else _moved_back(mask.expand_as(hidden), room, axis=3)
    if ranges is not None:
        place = torch.arange(key.shape[2]) - torch.tensor(room)[:, None, None, None]
        first, end = ranges[:, None, :, None].unbind(-1)
        hidden |= (place < first) | (place >= end)
    scores = torch.einsum("bhsd,bhtd->bhst", query, key) * attributes["scale"]
    if attributes["is_causal"]:
        seq_len, kv_len = scores.shape[-2:]
        hidden |= torch.ones(seq_len, kv_len).tril(kv_len - seq_len) == 0
    if mask is not None:
        hidden |= ~mask if mask.dtype == torch.bool else mask == -torch.inf
        scores = scores if mask.dtype == torch.bool else scores + mask
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    weights = weights.masked_fill(hidden.all(-1, keepdim=True), 0.0)
    output = torch.einsum("bhst,bhtd,bsh->bshd", weights, value, gates)
    output = output.masked_fill((gates == 0).unsqueeze(-1), 0.0)
    return output.flatten(2) if merged else output.transpose(1, 2)


def _moved_back(tensor: torch.Tensor, room: list[int], axis: int) -> torch.Tensor:
    """Move what a sequence has along an axis back by its room; zeros come in front."""
    moved, size = torch.zeros(tensor.shape, dtype=tensor.dtype), tensor.shape[axis]
    for to, given, by in zip(moved, tensor, room, strict=True):
        to.narrow(axis - 1, by, size - by).copy_(given.narrow(axis - 1, 0, size - by))
    return moved


def _by_head(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[..., H*D] to [..., H, D]; torch cannot tell D of a tensor without elements by itself."""
    return tensor.unflatten(-1, (heads, tensor.shape[-1] // heads))


def _projection(inputs: list[torch.Tensor | None], attributes: dict) -> torch.Tensor:
    x, weight, _, bias = (*inputs, None)[:4]
    return torch.nn.functional.linear(x, weight.T, bias)


def _nbits_projection(inputs: list[torch.Tensor | None], attributes: dict) -> torch.Tensor:
    x, packed, _, scales, bias = (*inputs, None)[:5]
    weight = _nbits_weight(packed, scales, 4)[:, : attributes["in_features"]]
    return torch.nn.functional.linear(x, weight, bias)


def _nbits_product(inputs: list[torch.Tensor | None], attributes: dict) -> torch.Tensor:
    x, packed, scales = inputs
    weight = _nbits_weight(packed, scales, attributes["bits"])[:, : attributes["in_features"]]
    return torch.nn.functional.linear(x, weight)


def _nbits_weight(packed: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """[N, blocks * 32]"""
    columns, blocks, _ = packed.shape
    weight = torch.empty(columns, blocks, 32, dtype=torch.float64)
    if bits == 4:
        weight[..., 0::2], weight[..., 1::2] = packed % 16, packed // 16
    else:
        weight[:] = packed
    return ((weight - 2 ** (bits - 1)) * scales[..., None]).flatten(1)


def _router(inputs: list[torch.Tensor | None], attributes: dict) -> torch.Tensor:
    routed, shared, stage = (*inputs, None, None)[:3]
    num_shared, top_k = attributes["num_shared_heads"], attributes["top_k"]
    tokens = next(given for given in inputs if given is not None).shape[:2]
    if shared is None:
        shared_gates = torch.ones(*tokens, num_shared, dtype=torch.float64)
    else:
        shared_gates = shared.softmax(-1) * num_shared
    routed_gates = torch.zeros(*tokens, 0, dtype=torch.float64)
    if routed is not None:
        probabilities = routed.softmax(-1)
        ranked = probabilities.float().sort(dim=-1, descending=True, stable=True).indices
        chosen = torch.zeros_like(routed).scatter(-1, ranked[..., :top_k], 1.0)
        routed_gates = chosen
        if attributes["gate_mode"] == "weighted":
            kept = probabilities * chosen
            smallest = torch.finfo(torch.float32).eps
            routed_gates = kept / kept.sum(-1, keepdim=True).clamp(min=smallest) * top_k
    if stage is not None:
        weights = stage.softmax(-1) * 2
        shared_gates = shared_gates * weights[..., :1]
        routed_gates = routed_gates * weights[..., 1:]
    return torch.cat([shared_gates, routed_gates], dim=-1)


def _aggregated_attention(inputs: list[torch.Tensor | None], attributes: dict) -> torch.Tensor:
    """With torch's own unfold and normalize."""
    inputs = [*inputs, *[None] * (12 - len(inputs))]
    query, key, value, pooled_key, pooled_value, gates = inputs[:6]
    embedding, scale, window_bias, pooled_bias, tokens, offset = inputs[6:]
    heads = attributes["num_heads"]
    query, key, pooled_key = (_by_head(x, heads) for x in (query, key, pooled_key))
    if attributes["normalize"]:
        query, key, pooled_key = (
            F.normalize(x, dim=-1, eps=attributes["epsilon"]) for x in (query, key, pooled_key)
        )
    window_key, window_value = (_unfold(x, attributes) for x in (key.flatten(2), value))
    outside = _unfold(torch.ones_like(value), attributes)[:1, :, :, 0] == 0  # [1, N, H, L]

    scaled = query if embedding is None else query + embedding
    scaled = scaled if scale is None else scaled * scale.T[None, :, :, None]
    local = torch.einsum("bnhd,bnhdl->bnhl", scaled, window_key)
    local = (local if window_bias is None else local + window_bias).masked_fill(outside, -torch.inf)
    pool = torch.einsum("bnhd,bphd->bnhp", scaled, pooled_key)
    pool = pool if pooled_bias is None else pool + pooled_bias.transpose(0, 1)
    weights = torch.cat([local, pool], dim=-1).softmax(-1)
    local, pool = weights.split([local.shape[-1], pool.shape[-1]], dim=-1)

    local = local if tokens is None else local + torch.einsum("bnhd,hdl->bnhl", query, tokens)
    local = local if offset is None else local + offset
    output = (local.unsqueeze(-2) * window_value).masked_fill(outside.unsqueeze(-2), 0.0).sum(-1)
    pooled_value = _by_head(pooled_value, heads)
    output = output + torch.einsum("bnhp,bphd->bnhd", pool, pooled_value)
    output = (output * gates.unsqueeze(-1)).masked_fill((gates == 0).unsqueeze(-1), 0.0)
    return output.flatten(2)


def _unfold(tokens: torch.Tensor, attributes: dict) -> torch.Tensor:
    """[B, N, H*D] to what the window of each token holds, [B, N, H, D, L]; 0 outside."""
    kernel = (attributes["kernel_height"], attributes["kernel_width"])
    image = tokens.transpose(1, 2).unflatten(-1, (attributes["height"], attributes["width"]))
    columns = F.unfold(image, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
    heads, places = attributes["num_heads"], kernel[0] * kernel[1]
    by_head = columns.unflatten(1, (heads, tokens.shape[2] // heads, places))
    return by_head.permute(0, 4, 1, 2, 3)


def _token_conv(inputs: list[torch.Tensor | None], attributes: dict) -> torch.Tensor:
    tokens, weight, bias, input_bias = (*inputs, None, None)[:4]
    tokens = tokens if input_bias is None else tokens + input_bias
    channels, size = weight.shape[0], (attributes["height"], attributes["width"])
    kernel = tuple(weight.shape[2:])
    image = tokens[..., :channels].mT.reshape(len(tokens), channels, *size)
    patches = F.unfold(image, kernel, padding=tuple(k // 2 for k in kernel))
    taps = patches.unflatten(1, (channels, -1))  # [B, C, kh * kw, N]
    result = (taps * weight.flatten(1)[None, :, :, None]).sum(2).mT
    result = result if bias is None else result + bias
    if attributes["activation"] == "gelu":
        result = result * torch.special.ndtr(result)
    return result * tokens[..., channels:] if attributes["gated"] else result

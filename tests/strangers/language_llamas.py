"""Decoders in the style of Hugging Face's Llama family, patched with head routing."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded

VOCAB = 61


def ids(batch: int, seq: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (batch, seq), generator=generator)


class RMSNorm(nn.Module):
    def __init__(self, size, eps=1e-6, offset=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps
        self.offset = offset

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return (self.offset + self.weight) * hidden_states.to(dtype)


class RotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    @torch.no_grad()
    def forward(self, x, position_ids):
        inv = self.inv_freq[None, :, None].expand(position_ids.shape[0], -1, 1)
        freqs = (inv.float() @ position_ids[:, None, :].float()).transpose(1, 2)
        emb = torch.cat((freqs, freqs), dim=-1)
        return emb.cos().to(x.dtype), emb.sin().to(x.dtype)


def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)


def repeat_kv(x, n_rep):
    b, kv, s, d = x.shape
    if n_rep == 1:
        return x
    return x[:, :, None].expand(b, kv, n_rep, s, d).reshape(b, kv * n_rep, s, d)


class MLP(nn.Module):
    def __init__(self, dim, inner, act=F.silu):
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)
        self.act_fn = act

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class TinyAttention(nn.Module):
    """What the three models below have in common; the gate is made in `gate_heads`."""

    def __init__(self, dim=32, heads=8, kv_heads=2, head_dim=8, qk_norm=False):
        super().__init__()
        self.num_heads, self.num_kv, self.head_dim = heads, kv_heads, head_dim
        self.groups = heads // kv_heads
        self.scaling = head_dim**-0.5
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=False)
        self.q_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()

    def project(self, x, position_embeddings):
        shape = (*x.shape[:-1], -1, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        return *apply_rotary_pos_emb(q, k, *position_embeddings), v


class LlamaMoHAttention(TinyAttention):
    """Softmax over all heads, top 5 kept by zeroing the rest; scaled so that the sum is heads."""

    def __init__(self):
        super().__init__()
        self.head_router = nn.Linear(32, 8, bias=False)

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        q, k, v = self.project(hidden_states, position_embeddings)
        k, v = repeat_kv(k, self.groups), repeat_kv(v, self.groups)
        weights = torch.matmul(q, k.transpose(2, 3)) * self.scaling
        if attention_mask is not None:
            weights = weights + attention_mask[:, :, :, : k.shape[-2]]
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
        weights = F.dropout(weights, p=0.1, training=self.training)
        out = torch.matmul(weights, v)  # [B, H, S, D]
        scores = self.head_router(hidden_states).softmax(-1, dtype=torch.float32)
        top, idx = torch.topk(scores, 5, dim=-1, sorted=False)
        kept = torch.zeros_like(scores).scatter_(-1, idx, top)
        kept = kept / (kept.sum(-1, keepdim=True) + 1e-9) * self.num_heads
        out = out * kept.to(out.dtype).transpose(1, 2).unsqueeze(-1)
        out = out.transpose(1, 2).contiguous().reshape(*hidden_states.shape[:-1], -1)
        return self.o_proj(out), weights


class LlamaMoHForCausalLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, 32)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "input_layernorm": RMSNorm(32),
                    "self_attn": LlamaMoHAttention(),
                    "post_attention_layernorm": RMSNorm(32),
                    "mlp": MLP(32, 48),
                }
            )
            for _ in range(2)
        )
        self.norm = RMSNorm(32)
        self.rotary_emb = RotaryEmbedding(8)
        self.lm_head = nn.Linear(32, VOCAB, bias=False)

    def _causal_mask(self, attention_mask, dtype):
        seq = attention_mask.shape[-1]
        low = torch.finfo(dtype).min
        mask = torch.triu(torch.full((seq, seq), low, dtype=dtype), diagonal=1)
        mask = mask[None, None].expand(attention_mask.shape[0], 1, -1, -1).clone()
        padding = (mask + attention_mask[:, None, None, :].to(dtype)) == 0
        return mask.masked_fill(padding, low)

    def forward(self, input_ids, attention_mask=None, position_ids=None, labels=None):
        h = self.embed_tokens(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        mask = self._causal_mask(attention_mask, h.dtype)
        rope = self.rotary_emb(h, position_ids)
        all_hidden_states = ()
        for layer in self.layers:
            all_hidden_states += (h,)
            attn, _ = layer["self_attn"](layer["input_layernorm"](h), rope, attention_mask=mask)
            h = h + attn
            h = h + layer["mlp"](layer["post_attention_layernorm"](h))
        logits = self.lm_head(self.norm(h))
        return {"logits": logits, "hidden_states": all_hidden_states, "loss": None}


def llama_inputs(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[0, :2] = 0  # Padded on the left.
    dims = {0: "batch", 1: "seq"}
    return (
        ModelInput("input_ids", ids(batch, seq), dims),
        ModelInput("attention_mask", mask, dims),
    )


class DynamicCache:
    """Grows by concatenation, as the one that everybody uses."""

    def __init__(self):
        self.key_cache, self.value_cache = [], []

    @classmethod
    def from_legacy_cache(cls, past):
        cache = cls()
        for k, v in past or ():
            cache.key_cache.append(k)
            cache.value_cache.append(v)
        return cache

    def update(self, k, v, layer_idx):
        if len(self.key_cache) <= layer_idx:
            self.key_cache.append(k)
            self.value_cache.append(v)
        else:
            self.key_cache[layer_idx] = torch.cat([self.key_cache[layer_idx], k], dim=-2)
            self.value_cache[layer_idx] = torch.cat([self.value_cache[layer_idx], v], dim=-2)
        return self.key_cache[layer_idx], self.value_cache[layer_idx]

    def get_seq_length(self):
        return self.key_cache[0].shape[-2] if self.key_cache else 0


class Qwen3MoHAttention(TinyAttention):
    """One decision for each group of queries: its two heads live and die together."""

    def __init__(self, layer_idx):
        super().__init__(heads=8, kv_heads=4, qk_norm=True)
        self.layer_idx = layer_idx
        self.group_router = nn.Linear(32, 4, bias=True)

    def forward(self, hidden_states, rope, attention_mask, past_key_values):
        q, k, v = self.project(hidden_states, rope)
        k, v = past_key_values.update(k, v, self.layer_idx)
        out = F.scaled_dot_product_attention(
            q, repeat_kv(k, 2), repeat_kv(v, 2), attn_mask=attention_mask, scale=self.scaling
        ).transpose(1, 2)
        probs = torch.sigmoid(self.group_router(hidden_states))
        choice = F.one_hot(probs.topk(2, dim=-1).indices, 4).sum(-2).to(probs.dtype)
        gate = (probs * choice).repeat_interleave(self.groups, dim=-1)  # [B, S, 8]
        return self.o_proj((out * gate[..., None]).flatten(2))


class Qwen3Step(nn.Module):
    """Past as one stacked tensor [layers, 2, B, kv heads, P, D]; the mask covers past and new."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, 32)
        self.layers = nn.ModuleList(Qwen3MoHAttention(i) for i in range(2))
        self.norms = nn.ModuleList(RMSNorm(32) for _ in range(3))
        self.rotary_emb = RotaryEmbedding(8, 1e6)

    def forward(self, input_ids, attention_mask, past):
        cache = DynamicCache.from_legacy_cache([(p[0], p[1]) for p in past])
        offset = cache.get_seq_length()
        h = self.embed_tokens(input_ids)
        cache_position = torch.arange(offset, offset + input_ids.shape[1], device=h.device)
        seen = torch.arange(attention_mask.shape[1], device=h.device) <= cache_position[:, None]
        mask = seen[None, None] & attention_mask[:, None, None, :].bool()
        rope = self.rotary_emb(h, cache_position[None])
        for norm, layer in zip(self.norms, self.layers, strict=False):
            h = h + layer(norm(h), rope, mask, past_key_values=cache)
        logits = F.linear(self.norms[-1](h), self.embed_tokens.weight)
        present = torch.stack(
            [torch.stack(kv) for kv in zip(cache.key_cache, cache.value_cache, strict=True)]
        )
        return OrderedDict(logits=logits, past_key_values=present)


def qwen_inputs(
    batch: int = 2, seq: int = 3, past: int = 5, total: int | None = None
) -> tuple[ModelInput, ...]:
    """The mask's length follows from two others, so `total` is not looked at."""
    mask = torch.ones(batch, past + seq, dtype=torch.int64)
    mask[-1, 0] = 0
    return (
        ModelInput("input_ids", ids(batch, seq), {0: "batch", 1: "seq"}),
        ModelInput("attention_mask", mask, {0: "batch", 1: "total"}),
        ModelInput("past", noise(2, 2, batch, 4, past, 8), {2: "batch", 4: "past"}),
    )


MODELS: list[ZooModel] = [
    ZooModel(
        "llama_left_padding",
        seeded(LlamaMoHForCausalLM),
        llama_inputs,
        Expected((ExpectedLayer(8, 2, 5, 0, "custom"),) * 2),
        "eager attention; scatter of softmax gates, over their sum times heads; dict output",
    ),
    ZooModel(
        "qwen3_dynamic_cache",
        seeded(Qwen3Step),
        qwen_inputs,
        Expected((ExpectedLayer(8, 4, 4, 0, "custom"),) * 2),
        "gates of KV groups, repeated for their heads; DynamicCache; bool mask; stacked past",
    ),
]

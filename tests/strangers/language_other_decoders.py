"""Decoders that are not Llama: Gemma 2, Phi, BLOOM, Falcon, GPT-NeoX, OPT, patched."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.strangers.language_llamas import (
    VOCAB,
    RMSNorm,
    RotaryEmbedding,
    TinyAttention,
    apply_rotary_pos_emb,
    ids,
    repeat_kv,
)
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded, tokens_in


class Gemma2Attention(TinyAttention):
    def __init__(self, sliding_window):
        super().__init__(heads=4, kv_heads=2)
        self.sliding_window, self.cap = sliding_window, 5.0
        self.router = nn.Linear(32, 4)

    def forward(self, x, rope):
        q, k, v = self.project(x, rope)
        scores = q @ repeat_kv(k, 2).mT * self.scaling
        scores = torch.tanh(scores / self.cap) * self.cap
        pos = torch.arange(x.shape[1])
        hidden = pos[None, :] > pos[:, None]
        if self.sliding_window:
            hidden = hidden | (pos[:, None] - pos[None, :] >= self.sliding_window)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        out = (scores.softmax(-1) @ repeat_kv(v, 2)).transpose(1, 2)
        gate = self.router(x).softmax(-1)
        kth = gate.topk(2, dim=-1).values[..., -1:]
        gate = torch.where(gate >= kth, gate, torch.zeros_like(gate))
        return self.o_proj((out * gate.unsqueeze(-1)).reshape(*x.shape[:2], -1))


class Gemma2(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 32)
        self.pre = nn.ModuleList(RMSNorm(32, offset=1.0) for _ in range(2))
        self.post = nn.ModuleList(RMSNorm(32, offset=1.0) for _ in range(2))
        self.attn = nn.ModuleList(Gemma2Attention(w) for w in (4, None))
        self.rope = RotaryEmbedding(8)

    def forward(self, input_ids):
        h = self.embed(input_ids) * math.sqrt(32)
        rope = self.rope(h, torch.arange(input_ids.shape[1])[None])
        for pre, attn, post in zip(self.pre, self.attn, self.post, strict=True):
            h = h + post(attn(pre(h), rope))
        logits = F.linear(h, self.embed.weight)
        return 30.0 * torch.tanh(logits / 30.0)


class PhiAttention(nn.Module):
    """Rotates a half of each head; the router looks at how long the queries are."""

    def __init__(self, gated):
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.dense = nn.Linear(32, 32)
        self.rope = RotaryEmbedding(4)
        self.k_heads = 2 if gated else None

    def forward(self, x, position_ids):
        q, k, v = (f(x).unflatten(-1, (4, 8)).transpose(1, 2) for f in self.qkv)
        norms = q.norm(dim=-1).transpose(1, 2)  # [B, S, H]
        cos, sin = self.rope(x, position_ids)
        q_rot, k_rot = apply_rotary_pos_emb(q[..., :4], k[..., :4], cos, sin)
        q = torch.cat((q_rot, q[..., 4:]), dim=-1)
        k = torch.cat((k_rot, k[..., 4:]), dim=-1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        if self.k_heads is not None:
            gates = norms.softmax(-1)
            drop = torch.ones_like(gates, dtype=torch.bool)
            drop.scatter_(-1, gates.topk(self.k_heads, -1).indices, False)
            out = out * gates.masked_fill(drop, 0).unsqueeze(-1) * 4
        return self.dense(out.reshape_as(x))


class Phi(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.attn = nn.ModuleList((PhiAttention(False), PhiAttention(True)))
        self.fc1 = nn.ModuleList(nn.Linear(32, 64) for _ in range(2))
        self.fc2 = nn.ModuleList(nn.Linear(64, 32) for _ in range(2))

    def forward(self, x, position_ids):
        for ln, attn, fc1, fc2 in zip(self.ln, self.attn, self.fc1, self.fc2, strict=True):
            h = ln(x)
            x = attn(h, position_ids) + fc2(F.gelu(fc1(h), approximate="tanh")) + x
        return (x,)


def phi_inputs(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    positions = torch.arange(seq).expand(batch, -1).clone()
    return (
        *tokens_in(batch, seq),
        ModelInput("position_ids", positions, {0: "batch", 1: "seq"}),
    )


def build_alibi(attention_mask, num_heads):
    slopes = torch.tensor([2.0 ** (-8.0 * (i + 1) / num_heads) for i in range(num_heads)])
    positions = ((attention_mask.cumsum(-1) - 1) * attention_mask)[:, None, :]
    alibi = slopes[..., None] * positions
    return alibi.reshape(attention_mask.shape[0] * num_heads, 1, attention_mask.shape[1])


class Bloom(nn.Module):
    def __init__(self, heads=4, head_dim=8):
        super().__init__()
        self.h, self.d = heads, head_dim
        self.ln = nn.LayerNorm(32)
        self.query_key_value = nn.Linear(32, 96)
        self.dense = nn.Linear(32, 32)
        self.moh_gate = nn.Linear(32, heads, bias=False)
        self.inv_norm_factor, self.beta = head_dim**-0.5, 1.0

    def forward(self, hidden, attention_mask):
        b, s, _ = hidden.shape
        alibi = build_alibi(attention_mask, self.h).to(hidden.dtype)
        x = self.ln(hidden)
        fused = self.query_key_value(x).view(b, s, self.h, 3, self.d)
        q, k, v = fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]
        q = q.transpose(1, 2).reshape(b * self.h, s, self.d)
        k = k.permute(0, 2, 3, 1).reshape(b * self.h, self.d, s)
        v = v.transpose(1, 2).reshape(b * self.h, s, self.d)
        scores = alibi.baddbmm(batch1=q, batch2=k, beta=self.beta, alpha=self.inv_norm_factor)
        scores = scores.view(b, self.h, s, s)
        causal = torch.ones(s, s, dtype=torch.bool).triu(1)
        blocked = causal[None, None] | (attention_mask[:, None, None, :] == 0)
        scores = torch.masked_fill(scores, blocked, torch.finfo(scores.dtype).min)
        probs = F.softmax(scores, dim=-1, dtype=torch.float32).to(x.dtype)
        context = torch.bmm(probs.view(b * self.h, s, s), v)
        context = context.view(b, self.h, s, self.d).permute(0, 2, 1, 3).reshape(b, s, -1)
        values, chosen = self.moh_gate(x).topk(2, dim=-1)
        gates = torch.zeros(b, s, self.h, dtype=x.dtype)
        gates = gates.scatter(2, chosen, values.softmax(-1))
        context = context * gates.repeat_interleave(self.d, dim=2)
        return self.dense(context) + hidden, probs


def masked_tokens(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[0, :1] = 0
    return (*tokens_in(batch, seq), ModelInput("attention_mask", mask, {0: "batch", 1: "seq"}))


class Falcon(nn.Module):
    """Multi query: one head of keys behind all queries in one fused projection."""

    def __init__(self, heads=5, d=8):
        super().__init__()
        self.h, self.d = heads, d
        self.ln = nn.LayerNorm(32)
        self.query_key_value = nn.Linear(32, (heads + 2) * d, bias=False)
        self.dense = nn.Linear(heads * d, 32, bias=False)
        self.wg = nn.Linear(32, heads - 1, bias=False)

    def forward(self, hidden, mask=None):
        b, s, _ = hidden.shape
        x = self.ln(hidden)
        fused = self.query_key_value(x).view(b, s, self.h + 2, self.d)
        q, k, v = fused[..., :-2, :], fused[..., [-2], :], fused[..., [-1], :]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        ctx = F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal=mask is None)
        p = F.softmax(self.wg(x), dim=-1)
        best = torch.zeros_like(p).scatter(-1, p.topk(2)[1], 1.0)
        g = torch.cat((torch.ones_like(p[..., :1]), p * best * (self.h - 1)), -1)
        return hidden + self.dense(torch.einsum("bhsd,bsh->bshd", ctx, g).reshape(b, s, -1))


class FalconDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Falcon(), Falcon()

    def forward(self, x, mask):
        return self.second(self.first(x, mask=mask))


def falcon_inputs(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    mask = torch.full((seq, seq), float("-inf")).triu(1).expand(batch, 1, -1, -1).clone()
    return (
        *tokens_in(batch, seq),
        ModelInput("mask", mask, {0: "batch", 2: "seq", 3: "seq"}),
    )


class GPTNeoX(nn.Module):
    """Heads are projected one by one through the reshaped weight, and gated on the way."""

    def __init__(self):
        super().__init__()
        self.ln = nn.LayerNorm(32)
        self.query_key_value = nn.Linear(32, 96)
        self.dense = nn.Linear(32, 32)
        self.gate = nn.Linear(32, 4)
        self.rope = RotaryEmbedding(4)
        self.register_buffer("bias", torch.ones(64, 64).tril().bool()[None, None])
        self.register_buffer("masked_bias", torch.tensor(-1e9), persistent=False)

    def forward(self, x):
        h = self.ln(x)
        s = x.shape[1]
        q, k, v = self.query_key_value(h).view(*x.shape[:2], 4, 24).transpose(1, 2).chunk(3, -1)
        cos, sin = self.rope(x, torch.arange(s)[None])
        qr, kr = apply_rotary_pos_emb(q[..., :4], k[..., :4], cos, sin)
        q, k = torch.cat((qr, q[..., 4:]), -1), torch.cat((kr, k[..., 4:]), -1)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(8)
        scores = torch.where(self.bias[:, :, :s, :s], scores, self.masked_bias)
        out = torch.einsum("bhij,bhjd->bihd", scores.softmax(-1), v)
        top = self.gate(h).sigmoid().topk(2, dim=-1)
        gates = torch.zeros_like(out[..., 0]).scatter_add(-1, top.indices, top.values)
        w_o = self.dense.weight.view(32, 4, 8)
        return x + torch.einsum("bihd,mhd,bih->bim", out, w_o, gates) + self.dense.bias


class OPT(nn.Module):
    """Heads flattened into the batch; gates where HF has `layer_head_mask`: on the weights."""

    def __init__(self):
        super().__init__()
        self.ln = nn.LayerNorm(32)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.router = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4))

    def _shape(self, t, b):
        return t.view(b, -1, 4, 8).transpose(1, 2).contiguous()

    def forward(self, hidden, past_key=None, past_value=None):
        b, tgt, _ = hidden.size()
        x = self.ln(hidden)
        q = self.q(x) * 8**-0.5
        k, v = self._shape(self.k(x), b), self._shape(self.v(x), b)
        if past_key is not None:
            k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
        present = (k, v)
        proj = (b * 4, -1, 8)
        q, k, v = self._shape(q, b).view(*proj), k.view(*proj), v.view(*proj)
        src = k.size(1)
        w = torch.bmm(q, k.transpose(1, 2)).view(b, 4, tgt, src)
        mask = torch.zeros(tgt, src).masked_fill(
            torch.ones(tgt, src).tril(src - tgt) == 0, float("-inf")
        )
        w = F.softmax(w + mask, dim=-1).view(b * 4, tgt, src)
        logits = self.router(x)
        keep = logits.argsort(-1, descending=True).argsort(-1) < 2
        head_mask = logits.softmax(-1) * keep
        w = head_mask.permute(0, 2, 1).unsqueeze(-1) * w.view(b, 4, tgt, src)
        out = torch.bmm(w.reshape(b * 4, tgt, src), v).view(b, 4, tgt, 8).transpose(1, 2)
        return hidden + self.out(out.reshape(b, tgt, 32)), present


def opt_inputs(batch: int = 2, seq: int = 3, past: int = 4) -> tuple[ModelInput, ...]:
    dims = {0: "batch", 2: "past"}
    return (
        *tokens_in(batch, seq),
        ModelInput("past_key", noise(batch, 4, past, 8, seed=1), dims),
        ModelInput("past_value", noise(batch, 4, past, 8, seed=2), dims),
    )


def id_inputs(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    return (ModelInput("input_ids", ids(batch, seq), {0: "batch", 1: "seq"}),)


def _one(heads, kv, k, shared=0, router="custom", replaced=True):
    return ExpectedLayer(heads, kv, k, shared, router, replaced)


MODELS: list[ZooModel] = [
    ZooModel(
        "gemma2_soft_cap",
        seeded(Gemma2),
        id_inputs,
        Expected((_one(4, None, 2, replaced=False),) * 2),
        "soft cap: not expressible; kept where the gate is at least the k-th best",
    ),
    ZooModel(
        "phi_query_norm",
        seeded(Phi),
        phi_inputs,
        Expected((_one(4, 4, 2, router="custom"),)),
        "first layer without gates; lengths of the queries before rotation; parallel MLP",
    ),
    ZooModel(
        "bloom_alibi",
        seeded(Bloom),
        masked_tokens,
        Expected((_one(4, 4, 2, router="top_k"),)),
        "alibi by baddbmm; gates repeated over the channels of merged heads",
    ),
    ZooModel(
        "falcon_multi_query",
        seeded(FalconDecoder),
        falcon_inputs,
        Expected((_one(5, 1, 2, 1),) * 2),
        "keys broadcast inside sdpa; one shared head of gate 1; einsum of gates",
    ),
    ZooModel(
        "gpt_neox_split_output",
        seeded(GPTNeoX),
        tokens_in,
        Expected((_one(4, 4, 2),)),
        "gates inside the einsum with the output weight, split by head",
    ),
    ZooModel(
        "opt_layer_head_mask",
        seeded(OPT),
        opt_inputs,
        Expected((_one(4, 4, 2),)),
        "gates on the attention weights; past as two tensors; rank by two argsorts",
    ),
]

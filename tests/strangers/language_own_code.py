"""Language models of people who write their own: nanoGPT, lit-gpt, Meta's Llama, DeepSeek."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.strangers.language_llamas import VOCAB, RMSNorm
from tests.strangers.language_other_decoders import id_inputs
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded, tokens_in


class NanoAttention(nn.Module):
    """Two shared heads, four routed; two routers weigh both kinds against each other."""

    def __init__(self, n_embd=48, n_head=6, n_shared=2, k=2):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.n_head, self.n_embd, self.n_shared, self.k = n_head, n_embd, n_shared, k
        self.w_routed = nn.Linear(n_embd, n_head - n_shared, bias=False)
        self.w_shared = nn.Linear(n_embd, n_shared, bias=False)
        self.w_kind = nn.Linear(n_embd, 2, bias=False)
        self.register_buffer("load", torch.zeros(n_head - n_shared), persistent=False)

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        probs = F.softmax(self.w_routed(x), dim=-1)
        _, idx = torch.topk(probs, self.k, dim=-1)
        mask = F.one_hot(idx, probs.size(-1)).sum(dim=-2)
        if self.training:
            self.load += mask.float().sum((0, 1))
        routed = probs * mask
        routed = routed / routed.sum(dim=-1, keepdim=True).clamp(min=1e-6) * self.k
        shared = torch.sigmoid(self.w_shared(x)) * self.n_shared
        kind = F.softmax(self.w_kind(x), dim=-1) * 2
        gate = torch.cat([shared * kind[..., :1], routed * kind[..., 1:]], dim=-1)
        y = (y.view(B, T, self.n_head, -1) * gate.unsqueeze(-1)).view(B, T, C)
        return self.c_proj(y)


class NanoGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, 48), nn.Embedding(32, 48)
        self.h = nn.ModuleList(nn.ModuleList((nn.LayerNorm(48), NanoAttention())) for _ in range(2))
        self.ln_f = nn.LayerNorm(48)
        self.lm_head = nn.Linear(48, VOCAB, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        _, t = idx.size()
        assert t <= 32, f"Cannot forward sequence of length {t}, block size is only 32"
        x = self.wte(idx) + self.wpe(torch.arange(0, t, dtype=torch.long, device=idx.device))
        for ln, attn in self.h:
            x = x + attn(ln(x))
        logits = self.lm_head(self.ln_f(x)[:, [-1], :])
        return logits, None


class LitGPT(nn.Module):
    """A cache of fixed length that is written at `input_pos`; interleaved groups of q, k, v."""

    def __init__(self, max_len=12):
        super().__init__()
        self.attn, self.proj = nn.Linear(32, (8 + 2 * 2) * 4), nn.Linear(32, 32)
        self.norm, self.gate = RMSNorm(32), nn.Linear(32, 8)
        self.register_buffer("mask", torch.ones(max_len, max_len).tril().bool()[None, None])
        t = torch.arange(max_len)[:, None] / 100 ** (torch.arange(2) / 2)
        self.register_buffer("cos", t.cos().repeat(1, 2))
        self.register_buffer("sin", t.sin().repeat(1, 2))

    def rope(self, x, cos, sin):
        half = torch.cat((-x[..., 2:], x[..., :2]), dim=-1)
        return x * cos + half * sin

    def forward(self, x, input_pos, k_cache, v_cache):
        B, T, _ = x.shape
        h = self.norm(x)
        cos, sin = self.cos.index_select(0, input_pos), self.sin.index_select(0, input_pos)
        mask = self.mask.index_select(2, input_pos)
        qkv = self.attn(h).view(B, T, 2, 6, 4).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((4, 1, 1), dim=2)
        q, k, v = q.reshape(B, -1, T, 4), k.reshape(B, -1, T, 4), v.reshape(B, -1, T, 4)
        q, k = self.rope(q, cos, sin), self.rope(k, cos, sin)
        k_cache = k_cache.index_copy(2, input_pos, k)
        v_cache = v_cache.index_copy(2, input_pos, v)
        y = F.scaled_dot_product_attention(
            q, k_cache, v_cache, attn_mask=mask, dropout_p=0.0, scale=0.5, enable_gqa=True
        ).transpose(1, 2)
        logits = self.gate(h)
        low = torch.kthvalue(logits, 5, dim=-1, keepdim=True).values
        y = y * (F.softplus(logits) * (logits >= low)).unsqueeze(-1)
        return x + self.proj(y.reshape(B, T, -1)), k_cache, v_cache


def lit_inputs(batch: int = 2, seq: int = 3) -> tuple[ModelInput, ...]:
    dims = {0: "batch"}
    return (
        *tokens_in(batch, seq),
        ModelInput("input_pos", torch.arange(seq) + 4, {0: "seq"}),
        ModelInput("k_cache", noise(batch, 2, 12, 4, seed=1), dims),
        ModelInput("v_cache", noise(batch, 2, 12, 4, seed=2), dims),
    )


class MetaLlama(nn.Module):
    """Rotary by complex numbers, keys repeated behind the rotation."""

    def __init__(self, heads=4, kv=2, d=8):
        super().__init__()
        self.n, self.kv, self.d = heads, kv, d
        self.wq, self.wo = nn.Linear(32, heads * d, bias=False), nn.Linear(32, 32, bias=False)
        self.wk, self.wv = (nn.Linear(32, kv * d, bias=False) for _ in range(2))
        self.router, self.norm = nn.Linear(32, heads, bias=False), RMSNorm(32)
        t = torch.outer(torch.arange(32).float(), 1.0 / 100 ** (torch.arange(0, d, 2) / d))
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(t), t), persistent=False)

    def rotate(self, x, freqs):
        x_ = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(x_ * freqs[None, :, None, :]).flatten(3).type_as(x)

    def forward(self, x):
        bsz, seqlen, _ = x.shape
        h = self.norm(x)
        xq = self.wq(h).view(bsz, seqlen, self.n, self.d)
        xk = self.wk(h).view(bsz, seqlen, self.kv, self.d)
        xv = self.wv(h).view(bsz, seqlen, self.kv, self.d)
        freqs = self.freqs_cis[:seqlen]
        xq, xk = self.rotate(xq, freqs), self.rotate(xk, freqs)
        keys, values = (torch.repeat_interleave(t, 2, dim=2) for t in (xk, xv))
        xq, keys, values = (t.transpose(1, 2) for t in (xq, keys, values))
        scores = torch.matmul(xq, keys.transpose(2, 3)) / math.sqrt(self.d)
        mask = torch.full((seqlen, seqlen), float("-inf"))
        scores = scores + torch.triu(mask, diagonal=1)
        out = torch.matmul(F.softmax(scores.float(), dim=-1).type_as(xq), values)
        weights, selected = torch.topk(self.router(x), 2)  # Before the norm.
        weights = F.softmax(weights, dim=-1, dtype=torch.float)
        gates = (F.one_hot(selected, self.n) * weights.unsqueeze(-1)).sum(2)
        out = out.mul_(gates.transpose(1, 2).unsqueeze(3))
        return x + self.wo(out.transpose(1, 2).contiguous().view(bsz, seqlen, -1))


class MLA(nn.Module):
    """DeepSeek's latent attention: one rotated key for all heads, values of another size."""

    def __init__(self, absorbed, heads=8, nope=8, rope=4, v=6, rank=10):
        super().__init__()
        self.absorbed, self.sizes = absorbed, (heads, nope, rope, v, rank)
        self.wq_a, self.q_norm = nn.Linear(32, 16, bias=False), RMSNorm(16)
        self.wq_b = nn.Linear(16, heads * (nope + rope), bias=False)
        self.wkv_a, self.kv_norm = nn.Linear(32, rank + rope, bias=False), RMSNorm(rank)
        self.wkv_b = nn.Linear(rank, heads * (nope + v), bias=False)
        self.wo = nn.Linear(heads * v, 32, bias=False)
        self.gate, self.bias = nn.Linear(32, heads, bias=False), nn.Parameter(torch.zeros(heads))

    def rotate(self, x):
        """Rotate interleaved pairs; x is [B, S, H, rope]."""
        angle = torch.arange(x.shape[1])[:, None] / 50 ** (torch.arange(2) / 2)
        cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)

    def route(self, x):
        """Sigmoid scores; the better 2 of 4 groups by a biased score, then the best 3 heads."""
        scores = self.gate(x).sigmoid()
        biased = scores + self.bias
        groups = biased.unflatten(-1, (4, 2))
        best = groups.amax(-1).topk(2, dim=-1)[1]
        keep = torch.zeros_like(groups[..., 0]).scatter_(-1, best, 1)
        biased = biased.masked_fill(keep.repeat_interleave(2, -1) == 0, float("-inf"))
        index = biased.topk(3, dim=-1)[1]
        weights = scores.gather(-1, index)
        weights = weights / weights.sum(-1, keepdim=True) * 2.5
        return torch.zeros_like(scores).scatter_(-1, index, weights)

    def forward(self, x):
        heads, nope, rope, v, rank = self.sizes
        b, s, _ = x.shape
        q = self.wq_b(self.q_norm(self.wq_a(x))).view(b, s, heads, nope + rope)
        q_nope, q_pe = torch.split(q, [nope, rope], dim=-1)
        q_pe = self.rotate(q_pe)
        kv, k_pe = torch.split(self.wkv_a(x), [rank, rope], dim=-1)
        kv, k_pe = self.kv_norm(kv), self.rotate(k_pe.unsqueeze(2))
        mask = torch.full((s, s), float("-inf")).triu_(1)
        scale, gates = (nope + rope) ** -0.5, self.route(x)
        if self.absorbed:
            w = self.wkv_b.weight.view(heads, nope + v, rank)
            q_nope = torch.einsum("bshd,hdc->bshc", q_nope, w[:, :nope])
            scores = torch.einsum("bshc,btc->bsht", q_nope, kv)
            scores = (scores + torch.einsum("bshr,btr->bsht", q_pe, k_pe.squeeze(2))) * scale
            scores = (scores + mask.unsqueeze(1)).softmax(dim=-1)
            out = torch.einsum("bsht,btc->bshc", scores, kv)
            out = torch.einsum("bshc,hdc->bshd", out, w[:, -v:])
        else:
            k_nope, val = self.wkv_b(kv).view(b, s, heads, nope + v).split([nope, v], dim=-1)
            k = torch.cat([k_nope, k_pe.expand(-1, -1, heads, -1)], dim=-1)
            q = torch.cat([q_nope, q_pe], dim=-1)
            scores = torch.einsum("bshd,bthd->bsht", q, k) * scale + mask.unsqueeze(1)
            out = torch.einsum("bsht,bthd->bshd", scores.softmax(-1), val)
        return x + self.wo((out * gates.unsqueeze(-1)).flatten(2))


class LegacyCacheStep(nn.Module):
    """`past_key_values` is a tuple of pairs; the module outside takes tensors."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.wg = nn.ModuleList(nn.Linear(32, 4) for _ in range(2))

    def decode(self, x, past_key_values=None, use_cache=True, head_mask=None):
        presents = []
        for i, qkv in enumerate(self.qkv):
            q, k, v = (t.unflatten(-1, (4, 8)) for t in qkv(x).chunk(3, -1))
            if past_key_values is not None:
                k = torch.cat((past_key_values[i][0], k), 1)
                v = torch.cat((past_key_values[i][1], v), 1)
            presents.append((k, v))
            a = torch.einsum("bihd,bjhd->bhij", q * 8**-0.5, k).softmax(-1)
            y = torch.einsum("bhij,bjhd->bihd", a, v)
            p = self.wg[i](x).softmax(-1)
            p = p * torch.zeros_like(p).scatter(-1, p.topk(2).indices, 1.0)
            if head_mask is not None:
                p = p * head_mask
            x = x + self.out[i]((y * p[..., None]).flatten(2))
        return x, tuple(presents) if use_cache else None

    def forward(self, token, k0, v0, k1, v1):
        return self.decode(token, past_key_values=((k0, v0), (k1, v1)), head_mask=None)


def legacy_inputs(batch: int = 2, past: int = 5) -> tuple[ModelInput, ...]:
    dims = {0: "batch", 1: "past"}
    pasts = zip(("k0", "v0", "k1", "v1"), range(4), strict=True)
    return (
        ModelInput("token", noise(batch, 1, 32), {0: "batch"}),
        *(ModelInput(name, noise(batch, past, 4, 8, seed=i), dims) for name, i in pasts),
    )


def _one(heads, kv, k, router="custom", shared=0):
    return ExpectedLayer(heads, kv, k, shared, router)


MODELS: list[ZooModel] = [
    ZooModel(
        "nanogpt_shared_routed",
        seeded(NanoGPT),
        id_inputs,
        Expected((_one(6, 6, 2, shared=2),) * 2),
        "sigmoid for shared heads, softmax for routed; load counters; last position only",
    ),
    ZooModel(
        "litgpt_index_copy_cache",
        seeded(LitGPT),
        lit_inputs,
        Expected((_one(8, 2, 4),)),
        "cache by index_copy, mask rows by index_select, enable_gqa, kthvalue, softplus gates",
    ),
    ZooModel(
        "meta_llama_complex_rotary",
        seeded(MetaLlama),
        tokens_in,
        Expected((_one(4, 2, 2, "top_k"),)),
        "complex rotary; one-hot of the chosen times their softmax; router before the norm",
    ),
    ZooModel(
        "deepseek_mla",
        seeded(lambda: MLA(absorbed=False)),
        tokens_in,
        Expected((_one(8, 8, 3, "scored"),)),
        "values smaller than keys; half of the key is the same for all heads; grouped choice",
    ),
    ZooModel(
        "deepseek_mla_absorbed",
        seeded(lambda: MLA(absorbed=True)),
        tokens_in,
        Expected((_one(8, 1, 3, "scored"),)),
        "keys and values are the latent itself: scores are a sum of two einsums",
    ),
    ZooModel(
        "legacy_cache_step",
        seeded(LegacyCacheStep),
        legacy_inputs,
        Expected((_one(4, 4, 2, "ranked"),) * 2),
        "one token on a tuple of pasts [B, P, H, D]; None inputs; head mask None",
    ),
]

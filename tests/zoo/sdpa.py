"""Attention cores written with F.scaled_dot_product_attention."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise, tokens_in


def pick_heads(logits, k):
    """Renormalised weights of the k likeliest heads, zero elsewhere."""
    p = logits.softmax(-1)
    keep = F.one_hot(p.topk(k, -1).indices, p.size(-1)).sum(-2)
    p = p * keep
    return k * p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).eps)


class CausalSDPA(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(32, 96)
        self.c_proj = nn.Linear(32, 32)
        self.c_gate = nn.Linear(32, 4, bias=False)
        self.resid_dropout = nn.Dropout(0.1)

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = q.view(B, T, 4, 8).transpose(1, 2)
        k = k.view(B, T, 4, 8).transpose(1, 2)
        v = v.view(B, T, 4, 8).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=0.1 if self.training else 0.0, is_causal=True
        )
        y = y.transpose(1, 2) * pick_heads(self.c_gate(x), 2).unsqueeze(-1)
        return self.resid_dropout(self.c_proj(y.contiguous().view(B, T, C)))


class PaddedSDPA(nn.Module):
    """A boolean mask of valid keys comes in beside the sequence."""

    def __init__(self, heads=4, dim=32):
        super().__init__()
        self.heads = heads
        self.qkv = nn.ModuleDict({n: nn.Linear(dim, dim) for n in ("q", "k", "v")})
        self.router = nn.Linear(dim, heads, bias=False)
        self.merge = nn.Linear(dim, dim)

    def forward(self, x, valid):
        q, k, v = (self.qkv[n](x).unflatten(2, (self.heads, -1)).movedim(2, 1) for n in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
        w = pick_heads(self.router(x), 1).movedim(2, 1).unsqueeze(-1)
        return self.merge((y * w).movedim(1, 2).flatten(2))


def padded_in(batch=2, seq=7):
    valid = torch.ones(batch, seq, dtype=torch.bool)
    valid[0, seq // 2 :] = False
    return (*tokens_in(batch, seq), ModelInput("valid", valid, {0: "batch", 1: "seq"}))


class BiasedSDPA(nn.Module):
    """A float bias for each query and key, and a scale of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 3 * 40, bias=False)
        self.choice = nn.Linear(32, 5, bias=False)
        self.outer = nn.Linear(40, 32)

    def forward(self, x, bias):
        b, n, _ = x.shape
        qkv = self.inner(x).reshape(b, n, 3, 5, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(
            qkv[0], qkv[1], qkv[2], attn_mask=bias.unsqueeze(1), scale=0.2
        )
        y = y.permute(0, 2, 1, 3)
        g = pick_heads(self.choice(x), 3)
        return self.outer(torch.mul(y, g[:, :, :, None]).reshape(b, n, 40))


def biased_in(batch=2, seq=6):
    bias = noise(batch, seq, seq, seed=5)
    return (*tokens_in(batch, seq), ModelInput("bias", bias, {0: "batch", 1: "seq", 2: "seq"}))


class GroupedSDPA(nn.Module):
    def __init__(self, dim=32, hq=8, hkv=2, d=8):
        super().__init__()
        self.hq, self.hkv, self.d = hq, hkv, d
        self.wq = nn.Parameter(torch.empty(dim, hq * d))
        self.wkv = nn.Parameter(torch.empty(dim, 2 * hkv * d))
        self.wo = nn.Parameter(torch.empty(hq * d, dim))
        self.wr = nn.Parameter(torch.empty(dim, hq))
        for p in self.parameters():
            nn.init.normal_(p, std=0.3)

    def forward(self, x):
        b, s, _ = x.shape
        q = (x @ self.wq).view(b, s, self.hq, self.d).transpose(1, 2)
        k, v = (x @ self.wkv).view(b, s, 2, self.hkv, self.d).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        o = o * pick_heads(x @ self.wr, 4).transpose(1, 2)[..., None]
        return o.transpose(1, 2).reshape(b, s, -1) @ self.wo


class CrossSDPA(nn.Module):
    """Queries read a memory of another length and width; values are wider than keys."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(32, 4 * 8)
        self.k = nn.Linear(24, 4 * 8)
        self.v = nn.Linear(24, 4 * 12)
        self.r = nn.Linear(32, 4, bias=False)
        self.o = nn.Linear(4 * 12, 32)

    def forward(self, x, memory):
        heads = [
            m(t).unflatten(-1, (4, -1)).transpose(1, 2)
            for m, t in ((self.q, x), (self.k, memory), (self.v, memory))
        ]
        y = F.scaled_dot_product_attention(*heads)
        g = pick_heads(self.r(x), 2)
        return self.o(torch.einsum("bhsd,bsh->bshd", y, g).flatten(-2))


def memory_in(batch=2, seq=5, kv=9):
    memory = noise(batch, kv, 24, seed=8)
    return (*tokens_in(batch, seq), ModelInput("memory", memory, {0: "batch", 1: "kv"}))


class NormedSDPA(nn.Module):
    """Queries and keys are normalised per head before they meet; one norm a layer kind."""

    def __init__(self, make_norm):
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.q_norm, self.k_norm = make_norm(8), make_norm(8)
        self.router = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4))
        self.proj = nn.Linear(32, 32)

    def forward(self, x):
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, 4, 8).unbind(2)
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj((y * pick_heads(self.router(x), 2)[..., None]).flatten(2))


def normed_pair():
    return nn.Sequential(NormedSDPA(nn.LayerNorm), NormedSDPA(nn.RMSNorm))


class SharedKeyValue(nn.Module):
    """Multi-query attention: one key and value head, broadcast by expand."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(32, 32, bias=False)
        self.kv = nn.Linear(32, 16, bias=False)
        self.g = nn.Linear(32, 4, bias=False)
        self.o = nn.Linear(32, 32, bias=False)

    def forward(self, x):
        b, s, _ = x.shape
        q = self.q(x).view(b, s, 4, 8).transpose(1, 2)
        k, v = self.kv(x).unsqueeze(1).chunk(2, -1)
        k, v = k.expand(-1, 4, -1, -1), v.expand(-1, 4, -1, -1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o((pick_heads(self.g(x), 2).unsqueeze(3) * y).reshape(b, s, 32))

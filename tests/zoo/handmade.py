"""Attention cores written out: matmul, bmm, einsum, masks, biases, rotations, layouts."""

import math
from math import sqrt

import torch
import torch.nn.functional as F
from torch import einsum, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise


def gates_of(router, x, k):
    probs = F.softmax(router(x), dim=-1)
    chosen = torch.topk(probs, k, dim=-1)[1]
    mask = F.one_hot(chosen, num_classes=probs.shape[-1]).sum(dim=-2)
    probs = probs * mask
    denominator = probs.sum(-1, keepdim=True)
    return probs / denominator.clamp(min=torch.finfo(probs.dtype).eps) * k


class DividesScores(nn.Module):
    """GPT style: scores over sqrt(d), a triangular buffer, masked_fill, dropouts here and there."""

    def __init__(self, n_embd=32, n_head=4, block=64):
        super().__init__()
        self.n_head = n_head
        self.key, self.query, self.value = (nn.Linear(n_embd, n_embd) for _ in range(3))
        self.attn_drop, self.resid_drop = nn.Dropout(0.1), nn.Dropout(0.1)
        self.proj = nn.Linear(n_embd, n_embd)
        self.select = nn.Linear(n_embd, n_head, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block, block)).view(1, 1, block, block))

    def forward(self, x):
        B, T, C = x.size()
        k = self.key(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = self.query(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.tril[:, :, :T, :T] == 0, float("-inf"))
        y = self.attn_drop(F.softmax(att, dim=-1)) @ v
        y = y.transpose(1, 2) * gates_of(self.select, x, 2).unsqueeze(-1)
        return self.resid_drop(self.proj(y.contiguous().view(B, T, C)))


class Flattened(nn.Module):
    """fairseq style: time first, batch and heads in one axis, torch.bmm."""

    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.dim, self.heads, self.hd = dim, heads, dim // heads
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.router = nn.Linear(dim, heads, bias=False)

    def forward(self, x):
        bsz, t, _ = x.shape
        q, k, v = self.in_proj(x.transpose(0, 1)).chunk(3, dim=-1)
        q = q * self.hd**-0.5
        q, k, v = (
            m.contiguous().view(t, bsz * self.heads, self.hd).transpose(0, 1) for m in (q, k, v)
        )
        w = torch.bmm(q, k.transpose(1, 2))
        out = torch.bmm(F.softmax(w, dim=-1), v)  # [B*H, T, D]
        out = out.transpose(0, 1).reshape(t, bsz, self.heads, self.hd).transpose(0, 1)
        g = gates_of(self.router, x, 3)
        return self.out_proj((out * g[..., None]).reshape(bsz, t, self.dim))


class FlattenedOther(nn.Module):
    """Batch first, reshape to [B*H, S, D], baddbmm-free; the gate is flattened the same way."""

    def __init__(self):
        super().__init__()
        self.toq, self.tok, self.tov = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(32, 48)
        self.tor = nn.Linear(32, 6, bias=False)
        self.out = nn.Linear(48, 32)

    @staticmethod
    def fold(t, d):
        b, s, _ = t.shape
        return t.reshape(b, s, 6, d).permute(0, 2, 1, 3).reshape(b * 6, s, d)

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = self.fold(self.toq(x), 8), self.fold(self.tok(x), 8), self.fold(self.tov(x), 8)
        p = torch.bmm(q, k.permute(0, 2, 1)).div(sqrt(8)).softmax(-1)
        y = torch.bmm(p, v) * self.fold(gates_of(self.tor, x, 2), 1)
        return self.out(y.reshape(b, 6, s, 8).permute(0, 2, 1, 3).reshape(b, s, 48))


class LettersOne(nn.Module):
    """einsum with sequence before heads; softmax in float32, cast back."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 3 * 32, bias=False)
        self.r = nn.Linear(32, 4, bias=False)
        self.o = nn.Linear(32, 32, bias=False)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (4, 8)) for t in self.qkv(x).chunk(3, -1))
        scores = torch.einsum("bshd,bthd->bhst", q, k) * 8**-0.5
        attn = scores.float().softmax(-1).type_as(x)
        y = torch.einsum("bhst,bthd->bshd", attn, v)
        return self.o(torch.einsum("bsh,bshd->bshd", gates_of(self.r, x, 1), y).flatten(2))


class LettersTwo(nn.Module):
    """Other letters, another order of the score axes, torch.where for a causal mask."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(3, 32, 4, 8) * 0.25)
        self.R = nn.Parameter(torch.randn(32, 4) * 0.3)
        self.O = nn.Parameter(torch.randn(4, 8, 32) * 0.2)
        self.router = lambda t: t @ self.R

    def forward(self, x):
        L = x.shape[1]
        q, k, v = torch.einsum("nlc,ichd->inlhd", x, self.W)
        A = einsum("nlhd,nmhd->nhlm", q / 8**0.5, k)
        i = torch.arange(L)
        A = torch.where(i[:, None] >= i[None, :], A, torch.tensor(-1e9))
        P = A.softmax(dim=3)
        Z = einsum("nhlm,nmhd->nlhd", P, v)
        Z = einsum("nlhd,nlh->nlhd", Z, gates_of(self.router, x, 2))
        return einsum("nlhd,hdc->nlc", Z, self.O)


class HeadsFirst(nn.Module):
    """Heads are the outermost axis: [H, B, S, D]."""

    def __init__(self, heads=4, dim=32):
        super().__init__()
        self.h = heads
        self.wq = nn.Parameter(torch.randn(heads, dim, 8) / dim**0.5)
        self.wk = nn.Parameter(torch.randn(heads, dim, 8) / dim**0.5)
        self.wv = nn.Parameter(torch.randn(heads, dim, 8) / dim**0.5)
        self.wo = nn.Linear(heads * 8, dim)
        self.pick = nn.Linear(dim, heads, bias=False)

    def forward(self, x):
        q, k, v = (torch.einsum("bsc,hcd->hbsd", x, w) for w in (self.wq, self.wk, self.wv))
        p = torch.softmax(q @ k.mT * 8**-0.5, dim=-1)
        y = p @ v  # [H, B, S, D]
        g = gates_of(self.pick, x, 2).permute(2, 0, 1).unsqueeze(-1)
        return self.wo((g * y).permute(1, 2, 0, 3).flatten(2))


class RelativeBias(nn.Module):
    """Swin style: a table of biases by relative position on a 4x4 grid, added to the scores."""

    def __init__(self, dim=32, side=4, num_heads=4):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.table, std=1.0)
        yx = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
        rel = (yx.flatten(1)[:, :, None] - yx.flatten(1)[:, None, :]).permute(1, 2, 0) + side - 1
        self.register_buffer("index", rel[..., 0] * (2 * side - 1) + rel[..., 1], persistent=False)
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, num_heads, bias=False)

    def forward(self, x):
        B_, N, C = x.shape
        qkv = self.qkv(x).reshape(B_, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(N, N, -1).permute(2, 0, 1).contiguous()
        attn = (attn + bias.unsqueeze(0)).softmax(-1)
        y = (attn @ v).transpose(1, 2) * gates_of(self.gate, x, 2)[..., None]
        return self.proj(y.reshape(B_, N, C))


def grid_in(batch=2):
    return (ModelInput("x", noise(batch, 16, 32), {0: "batch"}),)


class Cosine(nn.Module):
    """Unit queries and keys, a learned clamped temperature per head, a bias per head and key."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(32)), nn.Parameter(torch.zeros(32))
        self.logit_scale = nn.Parameter(torch.log(10 * torch.ones(4, 1, 1)))
        self.cpb = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))
        self.router, self.proj = nn.Linear(32, 4, bias=False), nn.Linear(32, 32)

    def forward(self, x):
        b, n, c = x.shape
        offset = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, offset).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attn = attn * torch.clamp(self.logit_scale, max=math.log(1.0 / 0.01)).exp()
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        bias = 4 * torch.sigmoid(self.cpb(distance.float().unsqueeze(-1) / 8))
        attn = (attn + bias.permute(2, 0, 1).unsqueeze(0)).softmax(dim=-1)
        y = (attn @ v).transpose(1, 2)
        return self.proj(
            torch.einsum("bne,bned->bned", gates_of(self.router, x, 2), y).reshape(b, n, c)
        )


class Interleaved(nn.Module):
    """Rotary embedding on neighbouring pairs, as in GPT-J; keys and values repeated for groups."""

    def __init__(self, dim=32):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(dim, 64), nn.Linear(dim, 16), nn.Linear(dim, 16)
        self.o, self.r = nn.Linear(64, dim), nn.Linear(dim, 8, bias=False)
        self.register_buffer("freq", 100.0 ** -(torch.arange(0, 8, 2) / 8))

    def spin(self, t):
        a = torch.arange(t.shape[1])[:, None, None] * self.freq  # [S, 1, D/2]
        even, odd = t[..., 0::2], t[..., 1::2]
        return torch.stack(
            (even * a.cos() - odd * a.sin(), even * a.sin() + odd * a.cos()), dim=-1
        ).flatten(-2)

    def forward(self, x):
        b, s, _ = x.shape
        q, k = self.spin(self.q(x).view(b, s, 8, 8)), self.spin(self.k(x).view(b, s, 2, 8))
        k = k.repeat_interleave(4, dim=2)
        v = self.v(x).view(b, s, 2, 8).repeat_interleave(4, dim=2)
        w = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
        y = torch.einsum("bhqk,bkhd->bqhd", w.softmax(-1), v)
        return self.o((y * gates_of(self.r, x, 3).unsqueeze(-1)).reshape(b, s, 64))


class GroupedLetters(nn.Module):
    """Grouped queries without copies: five axes in the einsum."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(32, 48), nn.Linear(32, 24), nn.Linear(32, 24)
        self.o, self.r = nn.Linear(48, 32), nn.Linear(32, 6, bias=False)

    def forward(self, x):
        b, s, _ = x.shape
        q = self.q(x).view(b, s, 3, 2, 8)
        k, v = self.k(x).view(b, s, 3, 8), self.v(x).view(b, s, 3, 8)
        p = torch.einsum("bsgrd,btgd->bgrst", q * 8**-0.5, k).softmax(-1)
        y = torch.einsum("bgrst,btgd->bsgrd", p, v).reshape(b, s, 6, 8)
        return self.o((gates_of(self.r, x, 3)[..., None] * y).view(b, s, 48))


class GroupedMatmul(nn.Module):
    """Grouped queries by broadcasting matmul over a group axis, causal bias added."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(32, 48), nn.Linear(32, 32)
        self.o, self.r = nn.Linear(48, 32), nn.Linear(32, 6, bias=False)

    def forward(self, x):
        b, s, _ = x.shape
        q = self.q(x).view(b, s, 2, 3, 8).permute(0, 2, 3, 1, 4)
        k, v = self.kv(x).view(b, s, 2, 2, 8).permute(2, 0, 3, 1, 4).unsqueeze(3)
        future = torch.triu(torch.ones(s, s, dtype=torch.bool), diagonal=1)
        bias = torch.zeros(s, s).masked_fill(future, -1e4)
        p = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) * 8**-0.5 + bias, dim=-1)
        y = torch.matmul(p, v).permute(0, 3, 1, 2, 4)  # [B, S, 2, 3, D]
        return self.o((y * gates_of(self.r, x, 3).view(b, s, 2, 3, 1)).reshape(b, s, 48))

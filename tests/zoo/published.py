"""Models with the router forms of the MoH paper, in several hands."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise

# One: a vision transformer, two shared heads of six.


class SelectiveHeads(nn.Module):
    def __init__(self, width, n_heads, n_always, n_pick):
        super().__init__()
        self.n_heads, self.n_always, self.n_pick = n_heads, n_always, n_pick
        self.to_qkv = nn.Linear(width, 3 * width)
        self.route = nn.Linear(width, n_heads - n_always, bias=False)
        self.weigh_always = nn.Linear(width, n_always, bias=False)
        self.weigh_stage = nn.Linear(width, 2, bias=False)
        self.out = nn.Linear(width, width)

    def head_weights(self, x):
        p = self.route(x).softmax(-1)
        chosen = p.topk(self.n_pick, dim=-1).indices
        hit = F.one_hot(chosen, p.shape[-1]).sum(-2)
        kept = p * hit
        kept = kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).eps)
        always = self.weigh_always(x).softmax(-1) * self.n_always
        stage = self.weigh_stage(x).softmax(-1) * 2
        return torch.cat((stage[..., :1] * always, stage[..., 1:] * (kept * self.n_pick)), dim=-1)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.to_qkv(x).view(b, n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        y = torch.einsum("bth,bthd->bthd", self.head_weights(x), y)
        return self.out(y.flatten(2))


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Sequential(nn.LayerNorm(width), SelectiveHeads(width, 6, 2, 2))
        self.b = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        x = x + self.a(x)
        return x + self.b(x)


class TinyVision(nn.Module):
    def __init__(self, width=48, depth=2, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.where = nn.Parameter(torch.zeros(1, 16, width))
        self.trunk = nn.Sequential(*[Layer(width) for _ in range(depth)])
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        x = self.stem(images).flatten(2).transpose(1, 2) + self.where
        return self.head(self.trunk(x).mean(1))


def images_in(batch=2):
    return (ModelInput("images", noise(batch, 3, 16, 16), {0: "batch"}),)


# Two: one shared head, whose own softmax would be the constant 1.


class OneShared(nn.Module):
    def __init__(self):
        super().__init__()
        self.h, self.k = 4, 2
        self.q, self.kk, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.W_r = nn.Linear(32, 3, bias=False)
        self.W_h = nn.Linear(32, 2, bias=False)

    def forward(self, x):
        B, T, C = x.size()
        flat = x.reshape(B * T, C)
        scores = F.softmax(self.W_r(flat), dim=1)
        _, idx = torch.topk(scores, k=self.k, dim=1)
        onehot = F.one_hot(idx, num_classes=3).sum(dim=1)
        g = scores * onehot
        g = g / torch.clamp(g.sum(dim=1, keepdim=True), min=torch.finfo(g.dtype).eps)
        g = g.reshape(B, T, -1) * self.k
        alpha = F.softmax(self.W_h(flat), dim=1).reshape(B, T, 2) * 2
        one = torch.ones(B, T, 1, dtype=x.dtype, device=x.device)
        gate = torch.cat([alpha[:, :, 0:1] * one, alpha[:, :, 1:2] * g], dim=2)

        def split(t):
            return t.view(B, T, self.h, C // self.h).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.kk(x)), split(self.v(x))
        att = (q * (C // self.h) ** -0.5) @ k.transpose(-2, -1)
        y = (att.softmax(-1) @ v).transpose(1, 2)
        return self.o((gate.unsqueeze(-1) * y).reshape(B, T, C))


# Three: no shared heads, so a single stage.


class NoShared(nn.Module):
    def __init__(self, dim=32, heads=8, k=3):
        super().__init__()
        self.heads, self.k = heads, k
        self.proj_in = nn.Linear(dim, dim * 3, bias=False)
        self.gate = nn.Linear(dim, heads, bias=False)
        self.proj_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        B, N, C = x.shape
        probs = torch.softmax(self.gate(x), dim=-1)
        mask = F.one_hot(torch.topk(probs, self.k, -1)[1], self.heads).sum(-2)
        w = probs * mask
        w = w / w.sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).eps) * self.k
        q, k, v = self.proj_in(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj_out((o * w[..., None]).reshape(B, N, C))


# Four: every head is shared, nothing is chosen.


class WeightedHeads(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.nh = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.mix = nn.Linear(dim, heads, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.nh, C // self.nh).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        att = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(C // self.nh)
        out = torch.matmul(att.softmax(dim=-1), v).transpose(1, 2)
        gates = F.softmax(self.mix(x.reshape(B * N, C)), dim=1).reshape(B, N, -1) * self.nh
        return self.proj(torch.einsum("bne,bned->bned", gates, out).reshape(B, N, C))


# Five: a diffusion transformer; some layers choose, the last one does not.


def shift_scale(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DenoiserAttention(nn.Module):
    def __init__(self, dim, num_heads, shared, routed):
        super().__init__()
        self.num_heads, self.shared, self.routed = num_heads, shared, routed
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.shared_router = nn.Linear(dim, shared, bias=False)
        if routed:
            self.routed_router = nn.Linear(dim, num_heads - shared, bias=False)
            self.stage_router = nn.Linear(dim, 2, bias=False)

    def _gates(self, x):
        B, N, C = x.shape
        tok = x.reshape(-1, C)
        shared = F.softmax(self.shared_router(tok), dim=1).reshape(B, N, -1) * self.shared
        if not self.routed:
            return shared
        scores = F.softmax(self.routed_router(tok), dim=1)
        _, best = torch.topk(scores, k=self.routed, dim=1)
        routed = scores * F.one_hot(best, num_classes=scores.shape[1]).sum(dim=1)
        total = torch.sum(routed, dim=1, keepdim=True)
        routed = routed / torch.clamp(total, min=torch.finfo(total.dtype).eps)
        routed = routed.reshape(B, N, -1) * self.routed
        stage = F.softmax(self.stage_router(tok), dim=1).reshape(B, N, 2) * 2
        shared = torch.einsum("bn,bnh->bnh", stage[:, :, 0], shared)
        routed = torch.einsum("bn,bnh->bnh", stage[:, :, 1], routed)
        return torch.cat([shared, routed], dim=2)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        w = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        y = (w.softmax(dim=-1) @ v).transpose(1, 2)
        y = torch.einsum("bnh,bnhd->bnhd", self._gates(x), y)
        return self.proj(y.reshape(B, N, C))


class DenoiserBlock(nn.Module):
    def __init__(self, dim, **heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = DenoiserAttention(dim, **heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.cond = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        s1, g1, a1, s2, g2, a2 = self.cond(c).chunk(6, dim=1)
        x = x + a1.unsqueeze(1) * self.attn(shift_scale(self.norm1(x), s1, g1))
        return x + a2.unsqueeze(1) * self.mlp(shift_scale(self.norm2(x), s2, g2))


class Denoiser(nn.Module):
    def __init__(self, dim=48, classes=5):
        super().__init__()
        self.patchify = nn.Conv2d(4, dim, 2, stride=2)
        self.label = nn.Embedding(classes, dim)
        self.time = nn.Sequential(nn.Linear(16, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(
            [
                DenoiserBlock(dim, num_heads=6, shared=2, routed=3),
                DenoiserBlock(dim, num_heads=6, shared=6, routed=0),
            ]
        )
        self.final = nn.Linear(dim, 2 * 2 * 4)

    def timestep(self, t):
        freqs = torch.exp(-math.log(10000) * torch.arange(8, dtype=torch.float32) / 8)
        angle = t[:, None].float() * freqs[None]
        return self.time(torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1))

    def forward(self, x, t, y):
        c = self.timestep(t) + self.label(y)
        h = self.patchify(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h, c)
        h = self.final(h).reshape(-1, 4, 4, 2, 2, 4)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(-1, 4, 8, 8)


def noisy_latents_in(batch=2):
    return (
        ModelInput("x", noise(batch, 4, 8, 8), {0: "batch"}),
        ModelInput("t", torch.arange(batch) * 37 % 1000, {0: "batch"}),
        ModelInput("y", torch.arange(batch) % 5, {0: "batch"}),
    )


# Six: an encoder made of nested Sequentials with named parts.


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def stacked_encoder():
    def block():
        return Residual(
            OrderedDict(
                norm=nn.LayerNorm(32), mixing=SelectiveHeads(32, 4, 1, 1), drop=nn.Dropout(0.1)
            )
        )

    return nn.Sequential(OrderedDict(first=block(), second=block(), third=NoSharedHalf()))


class NoSharedHalf(NoShared):
    """Inherits everything and changes only the numbers."""

    def __init__(self):
        super().__init__(dim=32, heads=4, k=4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x

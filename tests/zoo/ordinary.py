"""Models without a Mixture-of-Head layer, some of which look as if they had one."""

import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def values(self, x):
        b, s, c = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # [B, S, H, D]

    def forward(self, x):
        return self.proj(self.values(x).flatten(2))


class ScaledHeads(Plain):
    """A learned constant for each head: the same for every token, so nothing is routed."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4, 1))

    def forward(self, x):
        return self.proj((self.values(x) * self.gamma).flatten(2))


class ChannelGated(Plain):
    """A sigmoid gate for each channel, not for each head."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(32, 32)

    def forward(self, x):
        return self.proj(torch.sigmoid(self.gate(x)) * self.values(x).flatten(2))


class Experts(nn.Module):
    """Top-2 of four feed-forward experts; every expert runs, a loop adds them up."""

    def __init__(self, dim=32, experts=4):
        super().__init__()
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 48), nn.GELU(), nn.Linear(48, dim)) for _ in range(experts)
        )

    def forward(self, x):
        p = self.router(x).softmax(-1)
        w = p * F.one_hot(p.topk(2, -1).indices, len(self.experts)).sum(-2)
        w = w / w.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = out + w[..., i, None] * expert(x)
        return out


class StackedExperts(nn.Module):
    """The same in einsums: the experts sit on an axis that looks like heads."""

    def __init__(self, dim=32, experts=4, hidden=16):
        super().__init__()
        self.router = nn.Linear(dim, experts)
        self.up = nn.Parameter(torch.randn(experts, dim, hidden) * dim**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, dim) * hidden**-0.5)

    def forward(self, x):
        value, where = torch.topk(self.router(x), 2, dim=-1)
        w = torch.zeros(*x.shape[:2], 4).scatter(-1, where, value.softmax(-1))
        y = F.silu(torch.einsum("bsc,ech->bseh", x, self.up))
        y = torch.einsum("bseh,ehc->bsec", y, self.down)
        return torch.einsum("bsec,bse->bsc", y, w)


class Block(nn.Module):
    def __init__(self, attention, feed_forward, dim=32):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        x = x + self.attention(self.ln_1(x))
        return x + self.feed_forward(self.ln_2(x))


class SqueezeExcite(nn.Module):
    """Channel attention of a convolutional network."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU())
        self.excite = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Sigmoid())
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        y = self.conv(images)
        y = y * self.excite(self.squeeze(y))
        return self.head(y.mean((2, 3)))


class Conditioned(nn.Module):
    """adaLN: a condition shifts, scales and gates, but per channel and after the projection."""

    def __init__(self):
        super().__init__()
        self.attn, self.norm = Plain(), nn.LayerNorm(32, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(32, 96))

    def forward(self, x):
        shift, scale, gate = self.modulation(x.mean(1, keepdim=True)).chunk(3, dim=-1)
        return x + gate * self.attn(self.norm(x) * (1 + scale) + shift)


def dense_beside_experts():
    return Block(Plain(), Experts())


def dense_beside_stacked_experts():
    return nn.Sequential(Block(Plain(), StackedExperts()), Block(Plain(), nn.Identity()))

"""Each pixel reads its 3x3 window and a pooled map in one softmax, then chooses heads.

Source: TransNeXt (arXiv 2311.17132), section 3, with the gates of MoH (arXiv 2410.11842).
"""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise


def neighbours(feature, heads):
    """[B, H*D, Y, X] to the 3x3 window of each pixel, [B, H, Y*X, D, 9]; zero outside."""
    b, c, y, x = feature.shape
    return (
        F.unfold(feature, 3, padding=1).view(b, heads, c // heads, 9, y * x).permute(0, 1, 4, 2, 3)
    )


class FocusAttention(nn.Module):
    """Heads: `always` shared ones with a softmax of their own, the rest chosen two a pixel."""

    def __init__(self, dim=32, heads=4, always=2, pick=1, side=8, pool=2):
        super().__init__()
        self.heads, self.always, self.pick = heads, always, pick
        self.side, self.pool, self.d = side, pool, dim // heads
        self.q, self.kv, self.out = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )
        self.reduce = nn.Sequential(nn.Linear(dim, dim), nn.GELU())
        self.pool_norm = nn.LayerNorm(dim)
        self.log_temperature = nn.Parameter(torch.zeros(heads, 1, 1))
        self.query_shift = nn.Parameter(torch.zeros(heads, 1, self.d))
        self.window_bias = nn.Parameter(torch.zeros(heads, 1, 9))
        self.pool_bias = nn.Parameter(torch.zeros(heads, side * side, pool * pool))
        self.token = nn.Parameter(torch.zeros(heads, self.d, 9))
        self.token_bias = nn.Parameter(torch.zeros(heads, 1, 9))
        self.route = nn.Linear(dim, heads - always, bias=False)
        self.share = nn.Linear(dim, always, bias=False)
        self.stage = nn.Linear(dim, 2, bias=False)
        inside = F.unfold(torch.ones(1, 1, side, side), 3, padding=1).view(9, -1).t() == 0
        self.register_buffer("outside", inside, persistent=False)
        reach = (~inside).sum(-1, keepdim=True) + pool * pool
        self.register_buffer("length_scale", torch.log(reach.float()), persistent=False)

    def split(self, t):
        return t.unflatten(-1, (self.heads, self.d)).transpose(1, 2)

    def gates(self, x):
        p = self.route(x).softmax(-1)
        m = F.one_hot(p.topk(self.pick, -1).indices, p.shape[-1]).sum(-2)
        p = p * m
        p = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).eps) * self.pick
        s = self.share(x).softmax(-1) * self.always
        a = self.stage(x).softmax(-1) * 2
        return torch.cat((a[..., :1] * s, a[..., 1:] * p), -1)

    def forward(self, x):
        b, n, c = x.shape
        q = F.normalize(self.split(self.q(x)), dim=-1)
        scale = F.softplus(self.log_temperature) * self.length_scale
        q_scaled = (q + self.query_shift) * scale

        k_map, v_map = (
            self.kv(x).transpose(1, 2).reshape(b, 2 * c, self.side, self.side).chunk(2, 1)
        )
        k_map = F.normalize(k_map.reshape(b, self.heads, self.d, n), dim=2).reshape(k_map.shape)
        k_near, v_near = neighbours(k_map, self.heads), neighbours(v_map, self.heads)

        small = self.reduce(x).transpose(1, 2).reshape(b, c, self.side, self.side)
        small = F.avg_pool2d(small, self.side // self.pool).flatten(2).transpose(1, 2)
        k_far, v_far = self.kv(self.pool_norm(small)).chunk(2, dim=-1)
        k_far, v_far = F.normalize(self.split(k_far), dim=-1), self.split(v_far)

        near = (q_scaled.unsqueeze(-2) @ k_near).squeeze(-2) + self.window_bias
        near = near.masked_fill(self.outside, float("-inf"))
        far = q_scaled @ k_far.transpose(-2, -1) + self.pool_bias
        near, far = torch.cat((near, far), -1).softmax(-1).split([9, self.pool**2], dim=-1)
        near = q @ self.token + self.token_bias + near
        y = (near.unsqueeze(-2) @ v_near.transpose(-2, -1)).squeeze(-2) + far @ v_far
        y = torch.einsum("bnh,bnhd->bnhd", self.gates(x), y.transpose(1, 2))
        return self.out(y.reshape(b, n, c))


class FullAttention(nn.Module):
    """What the last stage uses: cosine attention over all of the few remaining pixels."""

    def __init__(self, dim, heads, pick):
        super().__init__()
        self.heads, self.pick = heads, pick
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.log_temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.route = nn.Linear(dim, heads, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = F.normalize(q, dim=-1) * F.softplus(self.log_temperature) * 3
        y = (q @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1) @ v
        p = self.route(x).softmax(-1)
        g = p * F.one_hot(p.topk(self.pick, -1).indices, self.heads).sum(-2)
        g = g / g.sum(-1, keepdim=True).clamp(min=torch.finfo(g.dtype).eps) * self.pick
        return self.out(torch.einsum("bnh,bhnd->bnhd", g, y).flatten(2))


class Pyramid(nn.Module):
    """One windowed stage, a strided convolution, one stage of full attention."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 2, stride=2)
        self.near, self.norm1 = FocusAttention(), nn.LayerNorm(32)
        self.shrink = nn.Conv2d(32, 48, 2, stride=2)
        self.full, self.norm2 = FullAttention(48, 6, 4), nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, images):
        x = self.stem(images).flatten(2).mT
        x = x + self.near(self.norm1(x))
        x = self.shrink(x.mT.unflatten(-1, (8, 8))).flatten(2).mT
        x = x + self.full(self.norm2(x))
        return self.head(x.mean(1))


def pixels_in(batch=2):
    return (ModelInput("x", noise(batch, 64, 32), {0: "batch"}),)


def pictures_in(batch=2):
    return (ModelInput("images", noise(batch, 3, 16, 16), {0: "batch"}),)

"""Windowed-and-pooled attention as other hands write it."""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise

HEADS, HEAD_DIM = 4, 8
DIM = HEADS * HEAD_DIM


class Pixels(nn.Module):
    """Projections and a router for an image of fixed size; pixels row by row."""

    rows, columns, window, pool = 6, 5, (3, 3), (2, 1)

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))
        self.small_kv = nn.Linear(DIM, 2 * DIM)
        self.out, self.route = nn.Linear(DIM, DIM), nn.Linear(DIM, HEADS, bias=False)
        self.taps = self.window[0] * self.window[1]
        self.register_buffer("near", neighbours(self.rows, self.columns, *self.window))
        self.near_bias = nn.Parameter(torch.zeros(HEADS, self.taps))

    def gates(self, x):
        p = self.route(x).softmax(-1)
        g = p * F.one_hot(p.topk(2, -1).indices, HEADS).sum(-2)
        return g / g.sum(-1, keepdim=True).clamp(min=torch.finfo(g.dtype).eps) * 2

    def heads(self, t):
        """[B, N, H*D] to [B, N, H, D]."""
        return t.unflatten(-1, (HEADS, HEAD_DIM))

    def image(self, t):
        """[B, N, C] to [B, C, Y, X]."""
        return t.transpose(1, 2).unflatten(2, (self.rows, self.columns))

    def pooled(self, x):
        """Keys and values [B, P, H, D] of the pooled image."""
        small = F.adaptive_avg_pool2d(self.image(x), self.pool).flatten(2).transpose(1, 2)
        return self.small_kv(F.gelu(small)).unflatten(-1, (2, HEADS, HEAD_DIM)).unbind(2)

    def merge(self, x, y):
        """Gate and project y [B, N, H, D]."""
        return self.out((y * self.gates(x).unsqueeze(-1)).flatten(2))


def neighbours(rows, columns, high, wide):
    """[N, L]: number of the pixel at each tap; N outside."""
    number = torch.arange(rows * columns).view(1, 1, rows, columns).float() + 1
    windows = F.unfold(number, (high, wide), padding=(high // 2, wide // 2))[0].t().long()
    return torch.where(windows > 0, windows - 1, rows * columns)


def slices(image, high, wide):
    """[B, C, Y, X] to a list of [B, C, Y, X], one a tap."""
    y, x = image.shape[-2:]
    padded = F.pad(image, (wide // 2, wide // 2, high // 2, high // 2))
    return [
        padded[..., row : row + y, column : column + x]
        for row in range(high)
        for column in range(wide)
    ]


class SlicesOfPadded(Pixels):
    """Taps are slices, stacked; wide windows; pooled keys come first; nothing is normalised."""

    window = (3, 5)

    def forward(self, x):
        q = self.heads(self.q(x)) * HEAD_DIM**-0.5
        k, v = (
            torch.stack(slices(self.image(p(x)), *self.window), -1).flatten(2, 3)
            for p in (self.k, self.v)
        )
        k, v = (t.unflatten(1, (HEADS, HEAD_DIM)) for t in (k, v))  # [B, H, D, N, L]
        pk, pv = self.pooled(x)
        near = torch.einsum("bnhd,bhdnl->bhnl", q, k) + self.near_bias[None, :, None]
        near = torch.where(self.near < x.shape[1], near, float("-inf"))
        far = torch.einsum("bnhd,bphd->bhnp", q, pk)
        p = torch.cat([far, near], -1).softmax(-1)
        far, near = p[..., : far.shape[-1]], p[..., far.shape[-1] :]
        y = torch.einsum("bhnl,bhdnl->bnhd", near, v) + torch.einsum("bhnp,bphd->bnhd", far, pv)
        return self.merge(x, y)


class GatheredByNumber(Pixels):
    """Windows are gathered from pixels with one of zeros behind; products are summed by hand."""

    def windows(self, t):
        behind = torch.cat([t, torch.zeros_like(t[:, :1])], 1)
        return behind[:, self.near].unflatten(-1, (HEADS, HEAD_DIM))  # [B, N, L, H, D]

    def forward(self, x):
        q, k, v = self.heads(self.q(x)), self.windows(self.k(x)), self.windows(self.v(x))
        pk, pv = self.pooled(x)
        near = (q.unsqueeze(2) * k).sum(-1) + self.near_bias.t()  # [B, N, L, H]
        near = near.masked_fill((self.near == x.shape[1])[..., None], -1e9)
        far = (q.unsqueeze(2) * pk.unsqueeze(1)).sum(-1)  # [B, N, P, H]
        p = (torch.cat([near, far], 2) * 0.5).softmax(2)
        near, far = p.split([self.taps, far.shape[2]], 2)
        y = (near.unsqueeze(-1) * v).sum(2) + torch.einsum("bnph,bphd->bnhd", far, pv)
        return self.merge(x, y)


class TapsColumnByColumn(Pixels):
    """Taps go column by column, with bias, tokens and offsets in that order; keys are scaled."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(HEADS))
        self.tokens = nn.Parameter(torch.zeros(HEADS, self.taps, HEAD_DIM))
        self.offset = nn.Parameter(torch.zeros(HEADS, self.taps))
        hidden = (self.near == self.rows * self.columns).view(-1, *self.window).mT.flatten(1)
        self.register_buffer("mask", torch.zeros(hidden.shape).masked_fill(hidden, float("-inf")))

    def windows(self, t):
        t = F.unfold(self.image(t.flatten(2)), self.window, padding=1)
        t = t.unflatten(1, (HEADS, HEAD_DIM, *self.window)).transpose(3, 4)
        return t.flatten(3, 4).permute(0, 1, 4, 3, 2)  # [B, H, N, L, D]

    def forward(self, x):
        q = F.normalize(self.heads(self.q(x)), dim=-1).transpose(1, 2)
        scale = F.softplus(self.temperature)[:, None]
        k = self.windows(F.normalize(self.heads(self.k(x)), dim=-1) * scale)
        v = self.windows(self.heads(self.v(x)))
        pk, pv = (t.transpose(1, 2) for t in self.pooled(x))
        pk = F.normalize(pk, dim=-1) * scale.unsqueeze(-1)
        near = torch.einsum("bhnd,bhnld->bhnl", q, k)
        near = near + self.near_bias[:, None] + self.mask
        p = torch.cat([near, q @ pk.mT], -1).softmax(-1)
        near, far = p.tensor_split([self.taps], -1)
        near = near + torch.einsum("bhnd,hld->bhnl", q, self.tokens) + self.offset[:, None]
        y = torch.einsum("bhnl,bhnld->bhnd", near, v) + far @ pv
        return self.merge(x, y.transpose(1, 2))


def unit(x, dim=-1):
    return x / x.pow(2).sum(dim, keepdim=True).sqrt().clamp_min(1e-6)


class NormalisedAsWindows(Pixels):
    """Windows first, unit length afterwards; a unit function of its own; a joint mask and bias."""

    rows, columns, pool = 4, 7, (2, 2)

    def __init__(self):
        super().__init__()
        self.far_bias = nn.Parameter(torch.zeros(HEADS, self.rows * self.columns, 4))
        self.shift = nn.Parameter(torch.zeros(HEADS, 1, HEAD_DIM))
        hidden = F.pad(self.near == self.rows * self.columns, (0, 4))
        self.register_buffer("hidden", hidden)

    def windows(self, t):
        return F.unfold(self.image(t), 3, padding=1).unflatten(1, (HEADS, HEAD_DIM, 9))

    def forward(self, x):
        q = unit(self.heads(self.q(x)).transpose(1, 2))
        k, v = unit(self.windows(self.k(x)), 2), self.windows(self.v(x))  # [B, H, D, L, N]
        pk, pv = self.pooled(x)
        near = torch.einsum("bhnd,bhdln->bhnl", q + self.shift, k)
        far = (q + self.shift) @ unit(pk).permute(0, 2, 3, 1)
        bias = torch.cat([self.near_bias[:, None].expand(-1, q.shape[2], -1), self.far_bias], -1)
        scores = torch.cat([near, far], -1) * 7.5 + bias
        p = scores.masked_fill(self.hidden, torch.finfo(x.dtype).min).softmax(-1)
        near, far = p[..., :9], p[..., 9:]
        y = torch.einsum("bhnl,bhdln->bnhd", near, v)
        return self.merge(x, y + (far @ pv.transpose(1, 2)).transpose(1, 2))


class TapByTap(Pixels):
    """One product a tap; unit length by rsqrt, which no normalisation of the op is equal to."""

    def unit(self, t):
        return t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6)

    def forward(self, x):
        q, k = self.unit(self.heads(self.q(x))), self.unit(self.heads(self.k(x)))
        pk, pv = self.pooled(x)
        taps = slices(self.image(k.flatten(2)), *self.window)
        taps = [self.heads(tap.flatten(2).transpose(1, 2)) for tap in taps]
        near = torch.stack([(q * tap).sum(-1) for tap in taps], -1)  # [B, N, H, L]
        near = near.masked_fill((self.near == x.shape[1]).unsqueeze(1), float("-inf"))
        far = torch.einsum("bnhd,bphd->bnhp", q, self.unit(pk))
        p = torch.cat([near + self.near_bias, far], -1).softmax(-1)
        near, far = p[..., : self.taps], p[..., self.taps :]
        v = slices(self.image(self.v(x)), *self.window)
        v = torch.stack(v, 1).unflatten(2, (HEADS, HEAD_DIM)).flatten(4)  # [B, L, H, D, N]
        y = torch.einsum("bnhl,blhdn->bnhd", near, v) + torch.einsum("bnhp,bphd->bnhd", far, pv)
        return self.merge(x, y)


class FeatureMaps(Pixels):
    """Everything is a feature map, by 1x1 convolutions; keys repeat at the border, but hidden."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(DIM, 3 * DIM, 1)
        self.length = nn.Parameter(torch.ones(1, 1, self.rows, self.columns))

    def windows(self, t):
        t = F.pad(t, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
        return t.unflatten(1, (HEADS, HEAD_DIM)).flatten(-2)  # [B, H, D, Y, X, L]

    def forward(self, x):
        q, k, v = self.qkv(self.image(x)).chunk(3, 1)
        q = (q * self.length).unflatten(1, (HEADS, HEAD_DIM))
        k, v = self.windows(k), self.windows(v)
        pk, pv = self.pooled(x)
        hidden = (self.near == x.shape[1]).view(self.rows, self.columns, self.taps)
        near = torch.einsum("bhdyx,bhdyxl->bhyxl", q, k).masked_fill(hidden, float("-inf"))
        far = torch.einsum("bhdyx,bphd->bhyxp", q, pk)
        near, far = torch.cat([near, far], -1).softmax(-1).split([self.taps, pk.shape[1]], -1)
        y = torch.einsum("bhyxl,bhdyxl->bhdyx", near, v) + torch.einsum(
            "bhyxp,bphd->bhdyx", far, pv
        )
        return self.merge(x, y.flatten(3).permute(0, 3, 1, 2))


def thirty_in(batch=2):
    return (ModelInput("x", noise(batch, 30, DIM), {0: "batch"}),)


def twenty_eight_in(batch=2):
    return (ModelInput("x", noise(batch, 28, DIM), {0: "batch"}),)

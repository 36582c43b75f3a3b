"""Ways of writing that come from vision, audio, diffusion and sets."""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise, tokens_in
from tests.zoo.unusual import C, D, H, Parts


class ShiftedWindows(Parts):
    """Swin style: rolled windows, whose mask meets the scores in a view with an axis of windows."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(49, H))
        at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None]).permute(1, 2, 0) + 3
        self.register_buffer("apart", apart[..., 0] * 7 + apart[..., 1])
        side = torch.zeros(1, 8, 8, 1)
        side[:, -2:] += 1
        side[:, :, -2:] += 2
        side = self.cut(side).flatten(1)
        self.register_buffer("mask", (side[:, None] != side[:, :, None]).float() * -100)

    @staticmethod
    def cut(t):
        b, _, _, c = t.shape
        return t.view(b, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)

    def forward(self, x):
        b = x.shape[0]
        x = self.cut(torch.roll(x.view(b, 8, 8, C), (-2, -2), (1, 2)))
        q, k, v = self.qkv(x)
        w = (q * D**-0.5) @ k.transpose(-2, -1) + self.table[self.apart].permute(2, 0, 1)
        w = (w.view(-1, 4, H, 16, 16) + self.mask[:, None]).view(-1, H, 16, 16).softmax(-1)
        y = self.o(((w @ v).transpose(1, 2) * self.gates(x)[..., None]).flatten(2))
        y = y.view(b, 2, 2, 4, 4, C).permute(0, 1, 3, 2, 4, 5).reshape(b, 8, 8, C)
        return torch.roll(y, (2, 2), (1, 2)).flatten(1, 2)


def map_in(batch=2):
    return (ModelInput("x", noise(batch, 64, C), {0: "batch"}),)


class RelativePositions(Parts):
    """Conformer style: two biased queries, and scores of positions shifted by padding and views."""

    def __init__(self):
        super().__init__()
        self.p = nn.Linear(C, C, bias=False)
        self.u, self.w = nn.Parameter(torch.zeros(H, 1, D)), nn.Parameter(torch.zeros(H, 1, D))

    def positions(self, n):
        at = torch.arange(1 - n, n)[:, None] * torch.logspace(0, -2, C // 2)
        return self.p(torch.cat((at.sin(), at.cos()), -1)).view(1, -1, H, D).transpose(1, 2)

    @staticmethod
    def shifted(s):
        b, h, n, m = s.shape
        s = torch.cat((s.new_zeros(b, h, n, 1), s), -1).view(b, h, m + 1, n)
        return s[:, :, 1:].view(b, h, n, m)[..., : m // 2 + 1]

    def forward(self, x):
        q, k, v = self.qkv(x)
        at = self.shifted((q + self.w) @ self.positions(x.shape[1]).mT)
        y = ((((q + self.u) @ k.mT) + at) / D**0.5).softmax(-1) @ v
        return self.o((y.transpose(1, 2) * self.gates(x)[..., None]).flatten(2))


class ReducedKeys(Parts):
    """PVT style: keys and values come from a map that a strided convolution made smaller."""

    def __init__(self):
        super().__init__()
        self.small = nn.Conv2d(C, C, 2, 2)

    def forward(self, x):
        b, n, _ = x.shape
        small = self.small(x.mT.reshape(b, C, 8, 8)).reshape(b, C, -1).mT
        q, _, _ = self.qkv(x)
        _, k, v = self.qkv(F.layer_norm(small, (C,)))
        y = (q @ k.mT * D**-0.5).softmax(-1) @ v
        return self.o((y.transpose(1, 2) * self.gates(x)[..., None]).reshape(b, n, C))


class AlongEachAxis(nn.Module):
    """Axial attention to [B, T, Y, X, C]: the axis is moved behind the others."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Parts() for _ in range(3))

    def forward(self, x):
        for axis, layer in enumerate(self.layers, 1):
            t = x.movedim(axis, -2)
            rows = F.layer_norm(t.reshape(-1, t.shape[-2], C), (C,))
            y = F.scaled_dot_product_attention(*layer.qkv(rows)).transpose(1, 2)
            y = layer.o((y * layer.gates(rows)[..., None]).flatten(2))
            x = x + y.reshape(t.shape).movedim(-2, axis)
        return x


def video_in(batch=2, time=3):
    return (ModelInput("x", noise(batch, time, 2, 4, C), {0: "batch", 1: "time"}),)


class HeadsBehindOneAnother(Parts):
    """Set transformer style: heads are cut off and stacked along the batch, gates like them."""

    @staticmethod
    def stacked(t):
        return torch.cat(t.chunk(H, 2), 0)

    def forward(self, x):
        q, k, v = (self.stacked(m(x)) for m in (self.q, self.k, self.v))
        y = torch.bmm((q.bmm(k.mT) / C**0.5).softmax(2), v) * self.stacked(self.gates(x))
        y = x + y.unflatten(0, (H, -1)).permute(1, 2, 0, 3).flatten(2)
        return y + F.relu(self.o(y))


class TwoStreams(nn.Module):
    """Two sequences with weights of their own attend to both; each chooses its own heads."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Parts(), Parts()

    def joint(self, x, y):
        parts = zip(self.first.qkv(x), self.second.qkv(y), strict=True)
        q, k, v = (torch.cat(pair, 2) for pair in parts)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class JointGates(TwoStreams):
    """The gates of two streams are joined as the streams are."""

    def forward(self, x, y):
        gates = torch.cat((self.first.gates(x), self.second.gates(y)), 1)
        both = (self.joint(x, y) * gates[..., None]).flatten(2)
        n = x.shape[1]
        return self.first.o(both[:, :n]), self.second.o(both[:, n:])


class SplitStreams(TwoStreams):
    """What two streams attended to is split, and each part gated by itself."""

    def forward(self, x, y):
        both, n = self.joint(x, y), x.shape[1]
        first = both[:, :n] * self.first.gates(x)[..., None]
        second = both[:, n:] * self.second.gates(y)[..., None]
        return self.first.o(first.flatten(2)), self.second.o(second.flatten(2))


def streams_in(batch=2, seq=5, kv=4):
    return (
        *tokens_in(batch, seq),
        ModelInput("y", noise(batch, kv, C, seed=3), {0: "batch", 1: "kv"}),
    )


class TransposedStreams(TwoStreams):
    """MM-DiT style: tokens are cut out before heads and tokens change places, and gated there."""

    def forward(self, x, y):
        q, k, v = (
            torch.cat(pair, 2) for pair in zip(self.first.qkv(x), self.second.qkv(y), strict=True)
        )
        both, n = F.scaled_dot_product_attention(q, k, v), x.shape[1]
        first, second = both[:, :, :n].transpose(1, 2), both[:, :, n:].transpose(1, 2)
        first = first * self.first.gates(x)[..., None]
        second = second * self.second.gates(y)[..., None]
        return self.first.o(first.flatten(2)), self.second.o(second.flatten(2))


class SummedHeads(Parts):
    """TFT style: gated heads are added, not merged, and share their values."""

    def __init__(self):
        super().__init__()
        self.v, self.o = nn.Linear(C, D), nn.Linear(D, C)

    def forward(self, x):
        q, k = (m(x).unflatten(-1, (H, D)).transpose(1, 2) for m in (self.q, self.k))
        y = ((q @ k.mT / D**0.5).softmax(-1) @ self.v(x)[:, None]).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).sum(2))


class BetweenChannels(Parts):
    """XCiT style: a channel attends to channels, over all tokens; tokens choose heads."""

    def forward(self, x):
        q, k, v = (F.normalize(t, dim=2) for t in self.qkv(x))  # [B, H, S, D]
        y = v @ (q.mT @ k * 4).softmax(-1).mT
        return self.o((y.transpose(1, 2) * self.gates(x)[..., None]).flatten(2))

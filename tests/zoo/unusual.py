"""Gates, choices, layouts and signatures that are rarer, but that somebody will hand in."""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise, tokens_in

H, D, C = 4, 8, 32


class Parts(nn.Module):
    def __init__(self, out_of=H):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(C, C) for _ in range(4))
        self.r = nn.Linear(C, out_of, bias=False)

    def gates(self, x, k=2):
        p = self.r(x).softmax(-1)
        g = p * F.one_hot(p.topk(k, -1).indices, p.size(-1)).sum(-2)
        return k * g / g.sum(-1, keepdim=True).clamp(min=torch.finfo(g.dtype).eps)

    def qkv(self, x):
        b, s, _ = x.shape
        return (m(x).view(b, s, H, D).transpose(1, 2) for m in (self.q, self.k, self.v))


class SlicedGates(Parts):
    """Shared and routed heads are sliced apart, weighed, and put together again."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        g = self.gates(x)
        left, right = y[:, :, :1] * g[:, :, :1, None], y[:, :, 1:] * g[:, :, 1:, None]
        return self.o(torch.cat([left, right], dim=2).flatten(2))


class SharedUntouched(Parts):
    """The first two heads pass as they are; only the others meet a gate."""

    def __init__(self):
        super().__init__(out_of=2)

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        routed = y[:, :, 2:] * self.gates(x, k=1).unsqueeze(-1)
        return self.o(torch.cat([y[:, :, :2], routed], dim=2).flatten(2))


class WrittenIntoSlice(Parts):
    """The routed heads are weighed where they lie."""

    def __init__(self):
        super().__init__(out_of=2)

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        y[:, :, 2:] *= self.gates(x, k=1)[..., None]
        return self.o(y.flatten(2))


class SpreadByMatrix(Parts):
    """A matrix of 0 and 1 gives each channel the gate of its head."""

    def __init__(self):
        super().__init__()
        self.register_buffer("spread", torch.eye(H).repeat_interleave(D, dim=1))

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2).flatten(2)
        return self.o(y * (self.gates(x) @ self.spread))


class MaskThenWeight(Parts):
    """Two products in a row: a hard mask, then probabilities."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        p = self.r(x).softmax(-1)
        mask = torch.zeros_like(p).scatter(-1, p.topk(2, -1).indices, 1.0)
        return self.o((y * mask.unsqueeze(-1) * p.unsqueeze(-1)).flatten(2))


class FilledAfterwards(Parts):
    """Unchosen heads are filled with zeros, chosen ones weighed."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        p = self.r(x).softmax(-1)
        off = torch.ones_like(p, dtype=torch.bool).scatter(-1, p.topk(2, -1).indices, False)
        return self.o((y.masked_fill(off[..., None], 0.0) * p[..., None]).flatten(2))


class MultipliedAndAdded(Parts):
    """torch.addcmul on zeros."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        y = torch.addcmul(torch.zeros_like(y), y, self.gates(x)[..., None])
        return self.o(y.flatten(2))


class ProjectedFirst(Parts):
    """Each head is projected to the full width, then gated, then the heads are summed."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x))
        wide = torch.einsum("bhsd,hdc->bshc", y, self.o.weight.view(H, D, C))
        return (wide * self.gates(x).unsqueeze(-1)).sum(2)


class FlatTokens(Parts):
    """Gates and outputs meet as [B*S, H, D]."""

    def forward(self, x):
        b, s, _ = x.shape
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2).reshape(b * s, H, D)
        g = self.gates(x.reshape(b * s, C)).unsqueeze(2)
        return self.o((y * g).reshape(b, s, C))


class StraightThrough(Parts):
    """hard + soft - soft.detach(): what remains of a training trick."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        p = torch.sigmoid(self.r(x))
        hard = torch.zeros_like(p).scatter(-1, p.topk(2, -1).indices, 1.0)
        return self.o((y * (hard + p - p.detach())[..., None]).flatten(2))


class ArgsortChoice(Parts):
    """The ranks of the heads by argsort; those below k are on."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        p = self.r(x).softmax(-1)
        rank = p.argsort(dim=-1, descending=True).argsort(dim=-1)
        return self.o((y * (p * (rank < 2)).unsqueeze(-1)).flatten(2))


class TimeFirst(nn.Module):
    """Sequence first throughout: [S, B, C]."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.r = nn.Linear(C, H, bias=False)

    def forward(self, x):
        s, b, _ = x.shape
        q, k, v = self.inner(x).view(s, b, 3, H, D).permute(2, 1, 3, 0, 4)
        y = F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3)
        return self.outer((y * Parts.gates(self, x)[..., None]).flatten(2))


def time_first_in(batch=2, seq=7):
    return (ModelInput("x", noise(seq, batch, C), {0: "seq", 1: "batch"}),)


class Unbatched(nn.Module):
    """One sequence, no batch axis: [S, C]."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.r = nn.Linear(C, H, bias=False)

    def forward(self, x):
        q, k, v = self.inner(x).view(-1, 3, H, D).permute(1, 2, 0, 3)
        y = ((q @ k.mT) * D**-0.5).softmax(-1) @ v
        return self.outer(torch.einsum("hsd,sh->shd", y, Parts.gates(self, x)).flatten(1))


def unbatched_in(seq=9):
    return (ModelInput("x", noise(seq, C), {0: "seq"}),)


class FeatureMap(Parts):
    """A feature map of any height and width goes in and comes out."""

    def forward(self, feature):
        b, c, h, w = feature.shape
        x = feature.flatten(2).transpose(1, 2)
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        y = self.o((y * self.gates(x)[..., None]).flatten(2))
        return y.transpose(1, 2).reshape(b, c, h, w)


def feature_in(batch=2, height=3, width=5):
    axes = {0: "batch", 2: "height", 3: "width"}
    return (ModelInput("feature", noise(batch, C, height, width), axes),)


class Windows(Parts):
    """Swin style: an 8x8 map in windows of 4x4, gates made before the windows are cut."""

    def cut(self, t):
        b, _, c = t.shape
        return t.view(b, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b * 4, 16, c)

    def forward(self, x):
        b = x.shape[0]
        g, x = self.cut(self.gates(x)), self.cut(x)
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2) * g[..., None]
        y = self.o(y.flatten(2))
        return y.view(b, 2, 2, 4, 4, C).permute(0, 1, 3, 2, 4, 5).reshape(b, 64, C)


def map_in(batch=2):
    return (ModelInput("x", noise(batch, 64, C), {0: "batch"}),)


class Frames(nn.Module):
    """Attention over time for each place: two batch axes, [B, P, H, T, D]."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.r = nn.Linear(C, H, bias=False)

    def forward(self, x):
        x = x.transpose(1, 2)  # [B, P, T, C]
        q, k, v = self.inner(x).unflatten(-1, (3, H, D)).permute(3, 0, 1, 4, 2, 5)
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return self.outer((y * Parts.gates(self, x)[..., None]).flatten(3)).transpose(1, 2)


def frames_in(batch=2, time=5):
    return (ModelInput("x", noise(batch, time, 6, C), {0: "batch", 1: "time"}),)


class OneChoiceForAll(nn.Module):
    """The heads are chosen once, at the bottom, for every layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Parts() for _ in range(2))
        self.r = nn.Linear(C, H, bias=False)

    def forward(self, x):
        g = Parts.gates(self, x)[..., None]
        for layer in self.layers:
            y = F.scaled_dot_product_attention(*layer.qkv(F.layer_norm(x, (C,)))).transpose(1, 2)
            x = x + layer.o((y * g).flatten(2))
        return x


class PolicyOfASequence(Parts):
    """AdaViT style: the first token decides by a threshold which heads all tokens have."""

    def forward(self, x):
        policy = (self.r(x[:, 0]).sigmoid() > 0.5).float()
        y = F.scaled_dot_product_attention(*self.qkv(x)) * policy[..., None, None]
        return self.o(y.transpose(1, 2).flatten(2))


class WholeSequence(Parts):
    """One choice for the whole sequence, from its mean: gates [B, 1, H]."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        g = self.gates(x.mean(1, keepdim=True))
        return self.o((y * g[..., None]).flatten(2))


class CarefulRouter(Parts):
    """The router has a norm, a temperature, a bias, and float32 of its own."""

    def __init__(self):
        super().__init__()
        self.norm, self.r = nn.LayerNorm(C), nn.Linear(C, H, bias=True)
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def gates(self, x, k=2):
        with torch.autocast("cpu", enabled=False):
            logits = self.r(self.norm(x.float())) / self.temperature.clamp(min=0.1)
        p = logits.softmax(-1)
        mask = F.one_hot(p.topk(k, -1).indices, H).sum(-2)
        p = p * mask
        return (k * p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).eps)).to(x.dtype)

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class ReadsResidual(Parts):
    """The router reads what came in, the attention what the norm made of it."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(F.layer_norm(x, (C,)))).transpose(1, 2)
        return x + self.o((y * self.gates(x)[..., None]).flatten(2))


class FromTheirNames(nn.Module):
    """Keyword-only helpers; None and a dictionary among the outputs; an int32 mask."""

    def __init__(self):
        super().__init__()
        self.core = Parts()

    @staticmethod
    def attend(*, query, key, value, keep):
        bias = torch.where(keep[:, None, None, :], 0.0, torch.finfo(query.dtype).min)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)

    def forward(self, x, keep):
        q, k, v = self.core.qkv(x)
        y = self.attend(query=q, key=k, value=v, keep=keep > 0).transpose(1, 2)
        g = self.core.gates(x)
        return self.core.o((y * g[..., None]).flatten(2)), None, {"load": g.mean((0, 1))}


def int_mask_in(batch=2, seq=6):
    keep = (torch.arange(seq)[None] < seq - torch.arange(batch)[:, None] % 3).to(torch.int32)
    return (*tokens_in(batch, seq), ModelInput("keep", keep, {0: "batch", 1: "seq"}))

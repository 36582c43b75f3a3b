"""Learned queries: which heads they choose is known before the model runs."""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise
from tests.zoo.unusual import C, D, H, Parts


class LearnedQueries(Parts):
    """Perceiver style: the queries are weights, and so is what they choose."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(9, C))

    def forward(self, x):
        latents = self.latents.expand(x.shape[0], -1, -1)
        (q, _, _), (_, k, v) = self.qkv(latents), self.qkv(x)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o((y * self.gates(latents)[..., None]).flatten(2))


class ObjectQueries(Parts):
    """DETR style: the first layer looks at nothing but learned queries, then at the input."""

    def __init__(self):
        super().__init__()
        self.where = nn.Embedding(6, C)
        self.cross = nn.ModuleList(nn.Linear(C, C) for _ in range(4))
        self.choose = nn.Linear(C, H)

    @staticmethod
    def chosen(logits):
        return F.softmax(logits, -1) * (logits >= logits.topk(2, -1).values[..., -1:])

    def heads(self, t):
        return t.unflatten(-1, (H, D)).transpose(-2, -3)

    def forward(self, x):
        where = self.where.weight.unsqueeze(1).repeat(1, x.shape[0], 1).transpose(0, 1)
        y = torch.zeros_like(where)
        q, k, v = (
            self.heads(self.q(y + where)),
            self.heads(self.k(y + where)),
            self.heads(self.v(y)),
        )
        z = ((q @ k.mT / D**0.5).softmax(-1) @ v).transpose(1, 2)
        y = F.layer_norm(
            y + self.o((z * self.chosen(self.r(y + where))[..., None]).flatten(2)), [C]
        )
        q, k, v, o = self.cross
        q, k, v = self.heads(q(y + where)), self.heads(k(x)), self.heads(v(x))
        z = ((q @ k.mT / D**0.5).softmax(-1) @ v).transpose(1, 2)
        return y + o((z * self.chosen(self.choose(y + where))[..., None]).flatten(2))


class SeedVectors(Parts):
    """Set Transformer style: queries and logits are weights as they are; gates on the weights of
    attention, without a batch."""

    def __init__(self):
        super().__init__()
        self.seeds = nn.Parameter(torch.randn(H, 5, D))
        self.logits = nn.Parameter(torch.randn(5, H))

    def forward(self, x):
        _, k, v = self.qkv(x)
        kept = torch.zeros_like(self.logits).scatter(-1, self.logits.topk(1, -1).indices, 1.0)
        w = torch.einsum("hqd,bhkd->bhqk", self.seeds, k).div(D**0.5).softmax(-1)
        return self.o(((w * kept.T[..., None]) @ v).transpose(1, 2).flatten(2))


class LearnedSigmoids(Parts):
    """Inducing points that weigh every head."""

    def __init__(self):
        super().__init__()
        self.points = nn.Parameter(torch.randn(1, 3, C))

    def forward(self, x):
        (q, _, _), (_, k, v) = self.qkv(self.points), self.qkv(x)
        y = ((q @ k.mT / D**0.5).softmax(-1) @ v).transpose(1, 2)
        return self.o((y * self.r(self.points).sigmoid()[..., None]).flatten(2))


class LearnedImportance(Parts):
    """A task has chosen its heads, whatever the token."""

    def __init__(self):
        super().__init__()
        self.importance = nn.Parameter(torch.randn(H))

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x))
        least = self.importance.topk(2).values[-1]
        return self.o((y * (self.importance >= least)[:, None, None]).transpose(1, 2).flatten(2))


class HardConcrete(Parts):
    """Training has closed heads for good: a gate of exactly 0 (L0 pruning, arXiv 1905.09418)."""

    def __init__(self):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor([-9.0, 3.0, -9.0, 0.5]))

    def forward(self, x):
        gate = (self.log_alpha.sigmoid() * 1.2 - 0.1).clamp(0, 1)
        y = F.scaled_dot_product_attention(*self.qkv(x)) * gate[:, None, None]
        return self.o(y.transpose(1, 2).flatten(2))


class PositionsAsQueries(Parts):
    """Queries are learned positions, as many as there are tokens: how many, no weight knows."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.randn(64, C))

    def forward(self, x):
        at = self.at[: x.shape[1]].expand(x.shape[0], -1, -1)
        (q, _, _), (_, k, v) = self.qkv(at), self.qkv(x)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o((y * self.gates(at)[..., None]).flatten(2))


def picture_in(seq=7):
    return (ModelInput("x", noise(1, seq, C), {1: "seq"}),)


class SplitQueries(nn.Module):
    """Deformable DETR style, for one picture: the first layer reads weights, and nothing else."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Embedding(6, 2 * C)
        self.own, self.cross = Parts(), Parts()

    def attend(self, parts, x, at, memory):
        (q, _, _), (_, k, _), (_, _, v) = map(parts.qkv, (x + at, memory + at[:, :1], memory))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + parts.o((y * parts.gates(x + at)[..., None]).flatten(2))

    def forward(self, x):
        target, at = (one[None] for one in self.queries.weight.split(C, 1))
        return self.attend(self.cross, self.attend(self.own, target, at, target), at, x)

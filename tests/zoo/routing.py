"""Routers of mixture-of-experts models, choosing heads instead of experts."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.gating import C, Choosing, D, H, attend, heads_of


class GroupLimited(Choosing):
    """DeepSeek-V3: two groups of heads, the better one, and with a bias the best one in it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("e_score_correction_bias", torch.tensor([0.1, -0.2, 0.05, 0.2]))

    def weights(self, x):
        scores = self.router(x.reshape(-1, C)).sigmoid()
        choice = scores + self.e_score_correction_bias
        groups = choice.view(-1, 2, 2).sum(dim=-1)
        best = torch.topk(groups, k=1, dim=-1, sorted=False)[1]
        allowed = torch.zeros_like(groups).scatter_(1, best, 1).unsqueeze(-1).expand(-1, 2, 2)
        choice = choice.masked_fill(~allowed.reshape(-1, H).bool(), float("-inf"))
        where = torch.topk(choice, k=1, dim=-1, sorted=False)[1]
        kept = scores.gather(1, where) * 2.5
        return torch.zeros_like(scores).scatter(1, where, kept).view(*x.shape[:2], H)


class OneFurther(Choosing):
    """Noisy top-k gating: one more head is looked at than is kept; noise in training only."""

    def weights(self, x):
        logits = self.router(x)
        if self.training:
            logits = logits + torch.randn_like(logits)
        best, where = logits.topk(self.k + 1, dim=-1)
        gates = torch.softmax(best[..., : self.k], dim=-1)
        return torch.zeros_like(logits).scatter(-1, where[..., : self.k], gates)


class SigmoidsBehindShared(Choosing):
    """Head 0 always runs, at a half; the best two of three others, by sigmoids over their sum."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(C, H - 1, bias=False)
        self.register_buffer("bias", torch.zeros(H - 1))  # it was never trained

    def weights(self, x):
        scores = torch.sigmoid(self.router(x))
        chosen = F.one_hot(torch.topk(scores + self.bias, 2).indices, H - 1).sum(-2)
        kept = scores * chosen
        kept = 2 * kept / kept.sum(-1, keepdim=True).clamp(min=1e-6)
        return torch.cat([torch.full_like(kept[..., :1], 0.5), kept], dim=-1)


class SigmoidBesideSoftmax(Choosing):
    """One shared head by a sigmoid, as Qwen's shared expert; two of three others, as Mixtral."""

    def __init__(self):
        super().__init__()
        self.router, self.shared = nn.Linear(C, H - 1, bias=False), nn.Linear(C, 1)

    def weights(self, x):
        logits = self.router(x)
        best, where = logits.softmax(-1).topk(2, dim=-1)
        kept = torch.zeros_like(logits).scatter_(-1, where, best / best.sum(-1, keepdim=True))
        return torch.cat([torch.sigmoid(self.shared(x)), kept], dim=-1)


class SigmoidsBesideProbabilities(Choosing):
    """One projection: sigmoids for two shared heads; of two others, the better by its share."""

    def weights(self, x):
        shared, routed = self.router(x).chunk(2, dim=-1)
        p = routed.softmax(-1)
        return torch.cat([2 * shared.sigmoid(), p * (p >= p.topk(1).values)], dim=-1)


class OverTheSumOfAll(SigmoidBesideSoftmax):
    """A sigmoid and the chosen probabilities, divided by the sum of both."""

    def weights(self, x):
        p = self.router(x).softmax(-1)
        routed = p * F.one_hot(p.topk(2).indices, H - 1).sum(-2)
        gates = torch.cat([torch.sigmoid(self.shared(x)), routed], dim=-1)
        return gates / gates.sum(-1, keepdim=True) * H


class HeadsChooseTokens(Choosing):
    """Expert choice: each head takes the half of the tokens that wants it most."""

    def weights(self, x):
        wishes = self.router(x).softmax(-1).transpose(1, 2)
        best, where = wishes.topk(x.shape[1] // 2, dim=-1)
        return torch.zeros_like(wishes).scatter(-1, where, best).transpose(1, 2)


class TopP(Choosing):
    """As many heads as it takes to make up 70 % of the probability."""

    def weights(self, x):
        probabilities = self.router(x).softmax(-1)
        ordered, order = probabilities.sort(-1, descending=True)
        wanted = ordered.cumsum(-1) - ordered < 0.7
        kept = probabilities * torch.zeros_like(wanted).scatter(-1, order, wanted)
        return kept / kept.sum(-1, keepdim=True)


class Rectified(Choosing):
    """No ranking: what is above zero runs."""

    def weights(self, x):
        return F.relu(self.router(x))


class NullHead(Choosing):
    """A token may choose a head that is not there."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(C, H + 1, bias=False)

    def weights(self, x):
        probabilities = self.router(x).softmax(-1)
        best, where = probabilities.topk(2, -1)
        return torch.zeros_like(probabilities).scatter(-1, where, best)[..., :-1]


class PairsOfHeads(Choosing):
    """One gate for two heads, as for the query heads that share keys and values."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(C, H // 2, bias=False)

    def weights(self, x):
        probabilities = self.router(x).softmax(-1)
        best, where = probabilities.topk(1, -1)
        return torch.zeros_like(probabilities).scatter(-1, where, best).repeat_interleave(2, -1)


class PairsOnFiveAxes(Choosing):
    """The same, with the pairs on an axis of their own."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(C, H // 2, bias=False)

    def forward(self, x):
        y = attend(*heads_of(self.qkv, x)).transpose(1, 2).unflatten(2, (H // 2, 2))
        probabilities = self.router(x).softmax(-1)
        best, where = probabilities.topk(1, -1)
        gates = torch.zeros_like(probabilities).scatter(-1, where, best)
        return self.out((y * gates[..., None, None]).reshape(x.shape[:2] + (H * D,)))

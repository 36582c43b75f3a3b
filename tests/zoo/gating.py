"""One attention: many places to multiply the gates in, and many rules to choose them by."""

import torch
import torch.nn.functional as F
from torch import nn

H, D, C = 4, 8, 32


def heads_of(linear, x):
    """[B, S, 3*H*D] to three of [B, H, S, D]."""
    b, s, _ = x.shape
    return linear(x).view(b, s, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)


def attend(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / D**0.5, -1) @ v


class Base(nn.Module):
    """Parts that the modules below put together in their own ways."""

    def __init__(self, k=2):
        super().__init__()
        self.k = k
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.router = nn.Linear(C, H, bias=False)

    def weights(self, x):
        p = self.router(x).softmax(-1)
        m = F.one_hot(p.topk(self.k, -1).indices, H).sum(-2)
        g = p * m
        return g / g.sum(-1, keepdim=True).clamp(min=torch.finfo(g.dtype).eps) * self.k


class BeforeTranspose(Base):
    """[B, H, S, 1] multiplies the heads-first output."""

    def forward(self, x):
        y = attend(*heads_of(self.qkv, x))
        y = y * self.weights(x).transpose(1, 2).unsqueeze(-1)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class AfterMergeRepeat(Base):
    """Each gate is repeated over its head's channels and multiplies the merged output."""

    def forward(self, x):
        y = attend(*heads_of(self.qkv, x)).transpose(1, 2).reshape(x.shape)
        return self.out(y * self.weights(x).repeat_interleave(D, dim=-1))


class AfterMergeExpand(Base):
    """The same through expand and reshape."""

    def forward(self, x):
        b, s, _ = x.shape
        y = attend(*heads_of(self.qkv, x)).transpose(1, 2).contiguous().view(b, s, C)
        wide = self.weights(x).unsqueeze(-1).expand(b, s, H, D).reshape(b, s, H * D)
        return self.out(torch.mul(wide, y))


class OnProbabilities(Base):
    """The attention weights are gated before they meet the values."""

    def forward(self, x):
        q, k, v = heads_of(self.qkv, x)
        p = (q @ k.transpose(-1, -2) * D**-0.5).softmax(-1)
        p = p * self.weights(x).permute(0, 2, 1)[..., None]
        return self.out((p @ v).transpose(1, 2).flatten(2))


class InOutputEinsum(Base):
    """Gates, heads and the output projection meet in one einsum."""

    def forward(self, x):
        y = attend(*heads_of(self.qkv, x))
        w = self.out.weight.view(C, H, D)
        return torch.einsum("bsh,bhsd,chd->bsc", self.weights(x), y, w) + self.out.bias


class PerHeadProjection(Base):
    """Gated heads leave through a matrix of their own each."""

    def forward(self, x):
        y = torch.einsum("bhsd,bsh->bshd", attend(*heads_of(self.qkv, x)), self.weights(x))
        return torch.einsum("bshd,hdc->bsc", y, self.out.weight.view(H, D, C))


class InPlace(Base):
    """mul_ on the transposed view."""

    def forward(self, x):
        y = attend(*heads_of(self.qkv, x)).transpose(1, 2)
        y.mul_(self.weights(x)[:, :, :, None])
        return self.out(y.reshape(x.shape))


class LoopOverHeads(Base):
    """The heads are unbound and gated one by one, then concatenated."""

    def forward(self, x):
        y = attend(*heads_of(self.qkv, x))
        g = self.weights(x)
        parts = [y[:, i] * g[..., i : i + 1] for i in range(H)]
        return self.out(torch.cat(parts, dim=-1))


# Ways to choose.


class Choosing(Base):
    """Subclasses say how gates [B, S, H] come about."""

    def forward(self, x):
        y = attend(*heads_of(self.qkv, x)).transpose(1, 2)
        return self.out((y * self.weights(x).unsqueeze(-1)).reshape(x.shape))


class ScatterOnes(Choosing):
    """A 0/1 mask by scatter; kept probabilities are not renormalised."""

    def weights(self, x):
        p = self.router(x).softmax(-1)
        return p * torch.zeros_like(p).scatter_(-1, p.topk(self.k, -1).indices, 1.0)


class ScatterValues(Choosing):
    """The chosen, renormalised values are scattered into zeros."""

    def weights(self, x):
        value, where = torch.topk(F.softmax(self.router(x), dim=-1), self.k, dim=-1)
        value = value / value.sum(-1, keepdim=True)
        return torch.zeros(*x.shape[:2], H).scatter(2, where, value * self.k)


class Threshold(Choosing):
    """Every head at least as good as the k-th best."""

    def weights(self, x):
        s = self.router(x)
        kth = s.topk(self.k, dim=-1).values[..., -1:]
        return torch.where(s >= kth, s.softmax(-1), torch.zeros_like(s))


class MaskedSoftmax(Choosing):
    """Unchosen logits go to minus infinity before the softmax."""

    def weights(self, x):
        s = self.router(x)
        keep = torch.zeros_like(s, dtype=torch.bool).scatter(-1, s.topk(self.k, -1).indices, True)
        return s.masked_fill(~keep, float("-inf")).softmax(-1)


class SigmoidChoice(Choosing):
    """Independent probabilities, the best k of them."""

    def weights(self, x):
        s = torch.sigmoid(self.router(x))
        return s * F.one_hot(s.topk(self.k, dim=-1)[1], H).sum(-2).to(s)


class TopThenSoftmax(Choosing):
    """Mixtral order: top-k of the logits, softmax over the chosen."""

    def weights(self, x):
        value, where = self.router(x).topk(self.k, dim=-1)
        hot = F.one_hot(where, num_classes=H).to(value.dtype)  # [B, S, k, H]
        return (value.softmax(-1).unsqueeze(-1) * hot).sum(dim=2)


class BestOnly(Choosing):
    """Switch style: one head a token, weighed by its probability."""

    def weights(self, x):
        p = self.router(x).softmax(-1)
        return p * F.one_hot(p.argmax(-1), H)


class Noisy(Choosing):
    """Noise on the logits, in training only."""

    def __init__(self):
        super().__init__(k=2)
        self.noise = nn.Linear(C, H, bias=False)

    def weights(self, x):
        s = self.router(x)
        if self.training:
            s = s + torch.randn_like(s) * F.softplus(self.noise(x))
        top, where = s.topk(self.k, dim=-1)
        return torch.zeros_like(s).scatter(-1, where, F.softmax(top, dim=-1))


class BiasCorrected(Choosing):
    """A balancing bias helps to choose; the gates come from the scores without it."""

    def __init__(self):
        super().__init__(k=2)
        self.register_buffer("balance", torch.tensor([0.3, -0.2, 0.1, 0.0]))

    def weights(self, x):
        s = self.router(x).sigmoid()
        where = torch.topk(s + self.balance, self.k, dim=-1).indices
        kept = s.gather(-1, where)
        kept = kept / (kept.sum(-1, keepdim=True) + 1e-20) * 2.5
        return torch.zeros_like(s).scatter_(-1, where, kept)


class FixedAndChosen(Choosing):
    """Head 0 always runs with weight 1; two of the other three are chosen."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(C, H - 1, bias=False)

    def weights(self, x):
        p = self.router(x).sigmoid()
        chosen = torch.zeros_like(p).scatter_(-1, p.topk(2, -1)[1], 1.0) * p
        return F.pad(chosen, (1, 0), value=1.0)


class BinaryMask(Choosing):
    """A 0/1 mask of the two best of a linear router."""

    def weights(self, x):
        p = F.softmax(self.router(x), dim=-1)
        return F.one_hot(torch.topk(p, 2, dim=-1)[1], H).sum(dim=-2).float()

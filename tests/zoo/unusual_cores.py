"""Attention that is rarer, but that somebody will hand in; some of it is more than attention."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.unusual import C, D, H, Parts


class Baddbmm(Parts):
    """Bloom style: a linear position bias, torch.baddbmm with alpha and beta."""

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = (t.reshape(b * H, s, D) for t in self.qkv(x))
        slope = 2.0 ** -torch.arange(1, H + 1).float()
        alibi = slope[:, None, None] * torch.arange(s)[None, None]  # [H, 1, T]
        alibi = alibi.repeat(b, 1, 1).expand(b * H, s, s)
        scores = torch.baddbmm(alibi, q, k.transpose(1, 2), beta=1.0, alpha=D**-0.5)
        future = torch.ones(s, s, dtype=torch.bool).triu(1)
        p = scores.masked_fill(future, torch.finfo(x.dtype).min).softmax(-1)
        y = torch.bmm(p, v).view(b, H, s, D).transpose(1, 2)
        return self.o((y * self.gates(x).unsqueeze(-1)).flatten(2))


class OldMasking(Parts):
    """GPT-2 style: scores times mask minus a large number times its complement."""

    def forward(self, x):
        q, k, v = self.qkv(x)
        s = x.shape[1]
        m = torch.tril(torch.ones(s, s)).view(1, 1, s, s)
        w = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(v.size(-1))
        w = w * m - 1e10 * (1 - m)
        y = torch.matmul(F.softmax(w, dim=-1), v).permute(0, 2, 1, 3).contiguous()
        return self.o((y * self.gates(x)[..., None]).view(*x.shape))


class WrittenOut(Parts):
    """No matmul and no softmax: products and sums, exp and division."""

    def forward(self, x):
        q, k, v = self.qkv(x)
        w = (q[:, :, :, None] * k[:, :, None]).sum(-1) / D**0.5
        w = torch.exp(w - w.max(dim=-1, keepdim=True).values)
        w = w / w.sum(dim=-1, keepdim=True)
        y = (w[..., None] * v[:, :, None]).sum(3).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class PrefixTokens(Parts):
    """Learned keys and values stand before those of the sequence."""

    def __init__(self):
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(2, 1, H, 3, D))

    def forward(self, x):
        q, k, v = self.qkv(x)
        pk, pv = self.prefix.expand(-1, x.shape[0], -1, -1, -1)
        y = F.scaled_dot_product_attention(q, torch.cat((pk, k), 2), torch.cat((pv, v), 2))
        return self.o((y.transpose(1, 2) * self.gates(x)[..., None]).flatten(2))


class Latent(nn.Module):
    """Keys and values come from a narrow latent; part of a key is rotated and shared by all."""

    def __init__(self):
        super().__init__()
        self.q, self.down, self.rope = nn.Linear(C, H * 12), nn.Linear(C, 16), nn.Linear(C, 4)
        self.up, self.o = nn.Linear(16, H * (8 + 8)), nn.Linear(H * 8, C)
        self.r = nn.Linear(C, H, bias=False)

    def turn(self, t):
        a = torch.arange(t.shape[-2])[:, None] * torch.tensor([1.0, 0.1])
        one, two = t.chunk(2, -1)
        return torch.cat((one * a.cos() - two * a.sin(), one * a.sin() + two * a.cos()), -1)

    def forward(self, x):
        b, s, _ = x.shape
        q_nope, q_rope = self.q(x).view(b, s, H, 12).transpose(1, 2).split([8, 4], -1)
        k_nope, v = self.up(self.down(x)).view(b, s, H, 16).transpose(1, 2).split([8, 8], -1)
        k_rope = self.turn(self.rope(x).view(b, 1, s, 4)).expand(b, H, s, 4)
        q, k = torch.cat((q_nope, self.turn(q_rope)), -1), torch.cat((k_nope, k_rope), -1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return self.o((Parts.gates(self, x)[..., None] * y).flatten(2))


class SoftCapped(Parts):
    """Scores pass a tanh before the softmax."""

    def forward(self, x):
        q, k, v = self.qkv(x)
        w = 5.0 * torch.tanh(q @ k.mT / (5.0 * D**0.5))
        y = (w.softmax(-1) @ v).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class Sinks(Parts):
    """One more logit a head takes part in the softmax and is thrown away."""

    def __init__(self):
        super().__init__()
        self.sink = nn.Parameter(torch.zeros(H))

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = self.qkv(x)
        w = q @ k.mT / D**0.5
        w = torch.cat((w, self.sink.view(1, H, 1, 1).expand(b, H, s, 1)), -1).softmax(-1)
        y = (w[..., :-1] @ v).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class TalkingHeads(Parts):
    """Attention weights of all heads are mixed before they meet the values."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.eye(H) + 0.1 * torch.randn(H, H))

    def forward(self, x):
        q, k, v = self.qkv(x)
        w = torch.einsum("bhst,hg->bgst", (q @ k.mT / D**0.5).softmax(-1), self.mix)
        return self.o(((w @ v).transpose(1, 2) * self.gates(x)[..., None]).flatten(2))


class Linearized(Parts):
    """No softmax: feature maps and a running sum of keys times values."""

    def forward(self, x):
        q, k, v = self.qkv(x)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = q @ (k.mT @ v) / (q @ k.sum(2, keepdim=True).mT)
        return self.o((y.transpose(1, 2) * self.gates(x)[..., None]).flatten(2))


class Differential(Parts):
    """The difference of two attention maps over half of the channels each."""

    def forward(self, x):
        q, k, v = self.qkv(x)
        (q1, q2), (k1, k2) = q.chunk(2, -1), k.chunk(2, -1)
        w = (q1 @ k1.mT / 2).softmax(-1) - 0.3 * (q2 @ k2.mT / 2).softmax(-1)
        return self.o(((w @ v).transpose(1, 2) * self.gates(x)[..., None]).flatten(2))


class ShowsAttention(Parts):
    """Attention weights are an output too."""

    def forward(self, x):
        q, k, v = self.qkv(x)
        w = (q @ k.mT / D**0.5).softmax(-1)
        y = (w @ v).transpose(1, 2) * self.gates(x)[..., None]
        return self.o(y.flatten(2)), w


class AddedBeforeMerging(Parts):
    """Two attentions, each times the gates, are added before the heads are merged."""

    def __init__(self):
        super().__init__()
        self.other = Parts()

    def forward(self, x):
        gates = self.gates(x)[..., None]
        first, second = (F.scaled_dot_product_attention(*one.qkv(x)) for one in (self, self.other))
        y = first.transpose(1, 2) * gates + second.transpose(1, 2) * gates
        return self.o(y.flatten(2))


class ChannelMajor(Parts):
    """Heads are merged as "(d h)": a head's channels do not lie beside each other."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).permute(0, 2, 3, 1)  # [B, S, D, H]
        return self.o((y * self.gates(x)[:, :, None]).flatten(2))


class NoNumberIsZero(Parts):
    """A query that sees no key has no weights: NaN is made 0."""

    def forward(self, x):
        q, k, v = self.qkv(x)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu()
        w = (q @ k.mT / D**0.5).masked_fill(hidden, -math.inf).softmax(-1)
        y = (torch.nan_to_num(w) @ v).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class DividedAfterwards(Parts):
    """The softmax's sum divides the product with the values, not the weights."""

    def forward(self, x):
        q, k, v = self.qkv(x)
        w = q @ k.mT / D**0.5
        w = (w - w.amax(-1, keepdim=True)).exp()
        y = (w @ v / w.sum(-1, keepdim=True)).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class ModuleForEachHead(Parts):
    """Every head has a projection and an attention of its own; no tensor holds them all."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(C, 3 * D) for _ in range(H))

    def forward(self, x):
        y = []
        for head, gate in zip(self.heads, self.gates(x).split(1, -1), strict=True):
            q, k, v = head(x).chunk(3, -1)
            y.append(((q @ k.mT) * D**-0.5).softmax(-1) @ v * gate)
        return self.o(torch.cat(y, -1))


class ProjectedOneByOne(Parts):
    """Every head leaves through a linear layer of its own; the results are weighed and added."""

    def __init__(self):
        super().__init__()
        self.outs = nn.ModuleList(nn.Linear(D, C, bias=False) for _ in range(H))

    def forward(self, x):
        y, g = F.scaled_dot_product_attention(*self.qkv(x)), self.gates(x)
        return sum(out(y[:, i]) * g[..., i, None] for i, out in enumerate(self.outs))

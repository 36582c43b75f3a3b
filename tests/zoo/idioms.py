"""Habits of published code that say the same as a plain attention: masks, layouts, loops."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise, tokens_in
from tests.zoo.unusual import C, D, H, Parts


def lengths_in(batch=2, seq=7):
    """Tokens, and how many of them count: of the last sequence none but one."""
    lengths = torch.tensor([seq - i % 2 * (seq - 1) for i in range(batch)])
    return *tokens_in(batch, seq), ModelInput("lengths", lengths, {0: "batch"})


class ZeroedAgain(Parts):
    """ESPnet style: hidden keys are filled, and their weights zeroed; padding sees no key."""

    def forward(self, x, lengths):
        q, k, v = self.qkv(x)
        valid = torch.arange(x.shape[1]) < lengths[:, None]
        hidden = (valid[:, None] & valid[:, :, None]).unsqueeze(1).eq(0)
        w = (q @ k.mT / math.sqrt(D)).masked_fill(hidden, torch.finfo(x.dtype).min)
        y = (w.softmax(-1).masked_fill(hidden, 0.0) @ v).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class NodesByNodes(Parts):
    """DGL style: scores as [nodes, nodes, heads], into which a mask is written by index."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Embedding(5, H)

    def forward(self, x, lengths):
        b, n, _ = x.shape
        q, k, v = (m(x).transpose(0, 1).reshape(n, b * H, D) for m in (self.q, self.k, self.v))
        w = torch.bmm(q.transpose(0, 1) * D**-0.5, k.permute(1, 2, 0))
        w = w.transpose(0, 2).reshape(n, n, b, H).transpose(0, 2)
        far = (torch.arange(n)[:, None] - torch.arange(n)).abs().clamp(max=4)
        w = w + self.bias(far)
        pad = torch.arange(n) >= lengths[:, None]
        w[pad[:, None].expand(-1, n, -1)] = float("-inf")
        w = w.transpose(0, 2).reshape(n, n, b * H).transpose(0, 2).softmax(dim=2)
        y = torch.bmm(w, v.transpose(0, 1)).transpose(0, 1).reshape(n, b, H, D)
        y = y * self.gates(x).transpose(0, 1).unsqueeze(-1)
        return self.o(y.reshape(n, b, -1).transpose(0, 1))


class RelativeShift(Parts):
    """Transformer-XL style: scores with 2S - 1 positions, shifted, are the mask of the scores."""

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = self.qkv(x)
        places = torch.arange(2 * s - 1) - s + 1.0
        table = torch.stack((places.sin(), places.cos()), -1).repeat(1, D // 2)
        w = q @ table.mT  # [B, H, S, 2S - 1]
        w = F.pad(w, (1, 0)).view(b, H, 2 * s, s)[:, :, 1:].view(b, H, s, 2 * s - 1)
        w = w[..., : w.shape[-1] // 2 + 1]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=w).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class KeysInRowsAndColumns(Parts):
    """MViT style: scores are cut into rows and columns of keys, which have a bias each."""

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = self.qkv(x)
        k, v = (F.adaptive_avg_pool1d(t.flatten(0, 1).mT, 6).mT.view(b, H, 6, D) for t in (k, v))
        w = (q @ k.mT).view(b, H, s, 2, 3) + q[..., :2, None] + q[..., None, :3]
        y = (w.view(b, H, s, 6).softmax(-1) @ v).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None]).flatten(2))


class UnreadBias(Parts):
    """Diffusers style: baddbmm of memory that nobody wrote to, with beta=0; gates in its size."""

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = (t.reshape(b * H, s, D) for t in self.qkv(x))
        w = torch.baddbmm(torch.empty(b * H, s, s), q, k.mT, beta=0, alpha=D**-0.5)
        y = (w.softmax(-1) @ v).view(b, H, s, D).transpose(1, 2)
        return self.o((y * self.gates(x)[..., None].expand_as(y)).flatten(2))


class HeadsInBatch(Parts):
    """SASRec style: channels are split into heads, which are concatenated along the batch."""

    def forward(self, x):
        q, k, v = (torch.cat(m(x).split(D, 2), 0) for m in (self.q, self.k, self.v))
        y = (q @ k.mT / D**0.5).softmax(-1) @ v
        y = y * torch.cat(self.gates(x).split(1, 2), 0)
        return self.o(torch.cat(y.chunk(H, 0), 2))


def two_sequences_in(seq=7):
    return (ModelInput("x", noise(2, seq, C), {1: "seq"}),)


class ChannelsBeforeHeads(Parts):
    """AlphaFold style: a gate for each channel, and then that of the head."""

    def __init__(self):
        super().__init__()
        self.channels = nn.Linear(C, C)

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        y = y * self.channels(x).sigmoid().unflatten(-1, (H, D)) * self.gates(x)[..., None]
        return self.o(y.flatten(2))


class OneHeadAtATime(Parts):
    """A loop over slices of the projections; what a head gives is written into its channels."""

    def forward(self, x):
        q, k, v, g = self.q(x), self.k(x), self.v(x), self.gates(x)
        out = torch.zeros_like(x)
        for h in range(H):
            part = slice(h * D, h * D + D)
            w = q[..., part] @ k[..., part].transpose(1, 2) * D**-0.5
            out[..., part] = w.softmax(-1) @ v[..., part] * g[..., h : h + 1]
        return self.o(out)


class AddedByIndex(nn.Module):
    """A module a head; `index_add` puts the channels of a head where they belong."""

    def __init__(self):
        super().__init__()
        self.qs, self.ks, self.vs = (
            nn.ModuleList(nn.Linear(C, D) for _ in range(H)) for _ in range(3)
        )
        self.r, self.o = nn.Linear(C, H, bias=False), nn.Linear(C, C)

    def forward(self, x, lengths):
        pad = (torch.arange(x.shape[1]) >= lengths[:, None])[:, None]
        gates, out = Parts.gates(self, x), torch.zeros_like(x)
        for h, (q, k, v) in enumerate(zip(self.qs, self.ks, self.vs, strict=True)):
            w = q(x) @ k(x).mT / D**0.5
            w[pad.expand_as(w)] = float("-inf")
            y = F.softmax(w, -1) @ v(x) * gates[..., h, None]
            out = out.index_add(-1, torch.arange(h * D, h * D + D), y)
        return self.o(out)


class ChosenTokensAdded(Parts):
    """Heads as experts: one key and value for all, tokens added at their places, head by head."""

    def __init__(self):
        super().__init__()
        self.kv = nn.Linear(C, 2 * D)
        self.wq, self.wo = (nn.Parameter(torch.randn(*s)) for s in ((H, C, D), (H, D, C)))

    def forward(self, x):
        b, s, _ = x.shape
        k, v = self.kv(x).chunk(2, -1)
        gates, out = self.gates(x), x.new_zeros(b * s, C)
        hidden = torch.ones(s, s, dtype=torch.bool).triu(1)
        for h, (wq, wo) in enumerate(zip(self.wq, self.wo, strict=True)):
            w = ((x @ wq) @ k.mT / D**0.5).masked_fill(hidden, -math.inf)
            y = (w.softmax(-1) @ v) * gates[..., h : h + 1]
            out = out.index_add(0, torch.arange(b * s), (y @ wo).view(-1, C))
        return x + out.view(b, s, C)


class WeighedAverage(Parts):
    """TFT style: one value for all heads; gated heads are stacked, and their mean projected."""

    def __init__(self):
        super().__init__()
        self.v, self.o = nn.Linear(C, D), nn.Linear(D, C)

    def forward(self, x):
        q, k, v, g = self.q(x).chunk(H, -1), self.k(x).chunk(H, -1), self.v(x), self.gates(x)
        heads = [F.scaled_dot_product_attention(q[h], k[h], v) * g[..., h, None] for h in range(H)]
        return self.o(torch.stack(heads, 2).mean(2))


class AddedToTheStream(Parts):
    """Each head of a loop is projected, weighed, and added to the residual stream at once."""

    def __init__(self):
        super().__init__()
        self.wo = nn.Parameter(torch.randn(H, D, C))

    def forward(self, x):
        q, k, v = (m(x).chunk(H, -1) for m in (self.q, self.k, self.v))
        g, out = self.gates(x), x
        for h in range(H):
            w = (q[h] @ k[h].transpose(1, 2) * D**-0.5).softmax(-1)
            out = out + g[..., h : h + 1] * ((w @ v[h]) @ self.wo[h])
        return out


class LoopsOfLayers(nn.Module):
    """Two layers of one class, as Mixtral loops over experts: no bias ends a row of additions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Parts() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            q, k, v = (m(x).chunk(H, -1) for m in (layer.q, layer.k, layer.v))
            value, chosen = layer.r(x).softmax(-1).topk(2, -1)
            value, out = value / value.sum(-1, keepdim=True) * 2, torch.zeros_like(x)
            for h, weight in enumerate(layer.o.weight.chunk(H, -1)):
                y = (q[h] @ k[h].mT * D**-0.5).softmax(-1) @ v[h]
                out = out + (value * (chosen == h)).sum(-1, keepdim=True) * F.linear(y, weight)
            x = x + out
        return x


class MappedHeads(Parts):
    """A head is a function of its weights and its gate; torch.vmap runs all of them."""

    def __init__(self):
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(H, C, D)) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(H, D, C))

    def forward(self, x):
        def head(wq, wk, wv, wo, gate):
            y = F.scaled_dot_product_attention(x @ wq, x @ wk, x @ wv, is_causal=True)
            return (y * gate.unsqueeze(-1)) @ wo

        heads = torch.vmap(head, in_dims=(0, 0, 0, 0, -1))
        return x + heads(self.wq, self.wk, self.wv, self.wo, self.gates(x)).sum(0)


class SummedByIndex(Parts):
    """All projected heads are added at the same place by `index_add`."""

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.qkv(x)).transpose(1, 2)
        y = y * self.gates(x)[..., None]
        each = torch.einsum("bshd,hdo->hbso", y, self.o.weight.T.reshape(H, D, C))
        out = x.new_zeros(1, *x.shape).index_add(0, torch.zeros(H, dtype=torch.int64), each)
        return out.squeeze(0) + x


class OneAttentionABlock(nn.Module):
    """Blocks with one attention each, no heads, in a row: nothing that could be put together."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            q, k, v = block(x).chunk(3, -1)
            x = x + (q @ k.mT / C**0.5).softmax(-1) @ v
        return x

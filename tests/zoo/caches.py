"""Decoders whose cache is preallocated, or holds latents in place of keys and values."""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.language import Scale, copies, token_ids, turn_half
from tests.zoo.model import noise

WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 32, 4, 2, 8, 50


def rotated(x, positions, dims):
    """Turn the first `dims` channels of [B, H, S, D]; where that is all, the rest is empty."""
    angle = positions[:, None].float() * 100.0 ** -(torch.arange(0, dims, 2) / dims)
    angle = torch.cat((angle, angle), dim=-1)
    turned, rest = x[..., :dims], x[..., dims:]
    return torch.cat((turned * angle.cos() + turn_half(turned) * angle.sin(), rest), dim=-1)


class BalancedGate(nn.Module):
    """DeepSeek-V3: sigmoids in float32, a bias for the choice, over their sum, times a number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HEADS, WIDTH) / WIDTH**0.5)
        self.register_buffer("e_score_correction_bias", torch.tensor([0.1, -0.2, 0.05, 0.2]))

    def forward(self, x):
        scores = F.linear(x.flatten(0, 1).float(), self.weight.float()).sigmoid()
        where = torch.topk(scores + self.e_score_correction_bias, k=2, dim=-1, sorted=False)[1]
        kept = scores.gather(1, where)
        kept = kept / (kept.sum(dim=-1, keepdim=True) + 1e-20) * 2.5
        gates = torch.zeros_like(scores).scatter(1, where, kept)
        return gates.view(*x.shape[:2], HEADS).type_as(x)


class StaticCache(nn.Module):
    """Some tokens are written into a cache of a fixed length, at `cache_position`."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.gate = nn.Embedding(VOCAB, WIDTH), Scale(WIDTH), BalancedGate()
        self.q = nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False)
        self.k = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.v = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.o = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)

    def written(self, cache, position, new):
        return cache.index_copy(2, position, new)

    def forward(self, ids, cache_position, keys, values):
        x = self.embed(ids)
        h = self.norm(x)
        q, k, v = (
            m(h).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        q, k = (rotated(t, cache_position, HEAD_DIM) for t in (q, k))
        keys = self.written(keys, cache_position, k)
        values = self.written(values, cache_position, v)
        seen = torch.arange(keys.shape[2])[None, :] <= cache_position[:, None]
        y = F.scaled_dot_product_attention(
            q,
            copies(keys, HEADS // KV_HEADS),
            copies(values, HEADS // KV_HEADS),
            attn_mask=seen[None, None],
        )
        y = self.o((y.transpose(1, 2) * self.gate(h).unsqueeze(-1)).flatten(2))
        return F.linear(x + y, self.embed.weight), keys, values


class ScatteredCache(StaticCache):
    """The same by scatter."""

    def written(self, cache, position, new):
        where = position.view(1, 1, -1, 1).expand_as(new)
        return cache.scatter(2, where, new)


class LatentCache(nn.Module):
    """DeepSeek-V2 as it decodes: queries meet latents, which all heads share, and each head brings
    what it saw to values of its own before it meets its gate."""

    latent, turned = 12, 4

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.gate = nn.Embedding(VOCAB, WIDTH), Scale(WIDTH), BalancedGate()
        self.q = nn.Linear(WIDTH, HEADS * (HEAD_DIM + self.turned), bias=False)
        self.down = nn.Linear(WIDTH, self.latent + self.turned, bias=False)
        self.latent_norm = Scale(self.latent)
        self.up_k = nn.Parameter(torch.randn(HEADS, HEAD_DIM, self.latent))
        self.up_v = nn.Parameter(torch.randn(HEADS, self.latent, HEAD_DIM))
        self.o = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)

    def forward(self, ids, past):
        x = self.embed(ids)
        h, before, s = self.norm(x), past.shape[1], ids.shape[1]
        position = torch.arange(before, before + s)
        q, q_turned = self.q(h).unflatten(-1, (HEADS, -1)).split([HEAD_DIM, self.turned], -1)
        q_turned = rotated(q_turned.transpose(1, 2), position, self.turned)
        new, key = self.down(h).split([self.latent, self.turned], -1)
        key = rotated(key.unsqueeze(1), position, self.turned).squeeze(1)
        cache = torch.cat((past, torch.cat((self.latent_norm(new), key), -1)), dim=1)
        latents, keys = cache.split([self.latent, self.turned], -1)
        q = torch.einsum("bshd,hdc->bhsc", q, self.up_k)
        scores = torch.einsum("bhsc,btc->bhst", q, latents)
        scores = scores + torch.einsum("bhsd,btd->bhst", q_turned, keys)
        hidden = torch.arange(before + s)[None, :] > position[:, None]
        weights = (scores * 12**-0.5).masked_fill(hidden, float("-inf")).softmax(-1)
        y = torch.einsum("bhst,btc->bshc", weights, latents)
        y = torch.einsum("bshc,hcd->bshd", y, self.up_v) * self.gate(h)[..., None]
        return F.linear(x + self.o(y.flatten(2)), self.embed.weight), cache


def static_in(batch=2, seq=3, length=9):
    cache = [noise(batch, KV_HEADS, length, HEAD_DIM, seed=i) for i in (1, 2)]
    axes = {0: "batch", 2: "length"}
    return (
        ModelInput("ids", token_ids(batch, seq), {0: "batch", 1: "seq"}),
        ModelInput("cache_position", torch.arange(1, seq + 1), {0: "seq"}),
        ModelInput("keys", cache[0], axes),
        ModelInput("values", cache[1], axes),
    )


def latent_in(batch=2, seq=3, past=6):
    return (
        ModelInput("ids", token_ids(batch, seq), {0: "batch", 1: "seq"}),
        ModelInput("past", noise(batch, past, 16, seed=3), {0: "batch", 1: "past"}),
    )

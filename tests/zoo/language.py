"""Language models that choose heads by the norm of their queries, with and without a cache."""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise

HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCAB = 8, 2, 8, 64, 50


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def turn_half(x):
    left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-right, left), dim=-1)


def angles(positions):
    inv = 1.0 / (10000 ** (torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM))
    table = positions[..., None].float() * inv
    return torch.cat((table, table), dim=-1)


def rotate(q, k, positions):
    a = angles(positions)[None, None]
    return q * a.cos() + turn_half(q) * a.sin(), k * a.cos() + turn_half(k) * a.sin()


def copies(x, n):
    b, h, t, d = x.shape
    return x[:, :, None].expand(b, h, n, t, d).reshape(b, h * n, t, d)


class NormRoutedAttention(nn.Module):
    """The first `fixed` heads always run; of the others, those with the longest queries do."""

    def __init__(self, fixed, pick):
        super().__init__()
        self.fixed, self.pick = fixed, pick
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)

    def choose(self, q):
        loud = torch.norm(q[:, :, self.fixed :], p=2, dim=-1)  # [B, S, R]
        loud = loud / loud.std(dim=-1, keepdim=True)
        share = F.softmax(loud, dim=-1)
        _, best = torch.topk(share, k=self.pick, dim=-1)
        mask = F.one_hot(best, num_classes=HEADS - self.fixed).sum(dim=-2)
        always = torch.ones(*mask.shape[:2], self.fixed)
        return torch.cat((always, mask.to(q.dtype)), dim=-1)

    def forward(self, x, mask, past=None):
        b, s, _ = x.shape
        q = self.q_proj(x).view(b, s, HEADS, HEAD_DIM)
        gate = self.choose(q)
        q = q.transpose(1, 2)
        k = self.k_proj(x).view(b, s, KV_HEADS, HEAD_DIM).transpose(1, 2)
        v = self.v_proj(x).view(b, s, KV_HEADS, HEAD_DIM).transpose(1, 2)
        start = 0 if past is None else past[0].shape[2]
        q, k = rotate(q, k, torch.arange(start, start + s))
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        scores = q @ copies(k, HEADS // KV_HEADS).transpose(2, 3) / HEAD_DIM**0.5
        if mask is not None:
            scores = scores + mask
        probs = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        y = (probs @ copies(v, HEADS // KV_HEADS)).transpose(1, 2)
        y = torch.einsum("bsh,bshd->bshd", gate, y).reshape(b, s, -1)
        return self.o_proj(y), (k, v)


class DecoderLayer(nn.Module):
    def __init__(self, fixed, pick):
        super().__init__()
        self.input_norm, self.post_norm = Scale(WIDTH), Scale(WIDTH)
        self.self_attn = NormRoutedAttention(fixed, pick)
        self.gate_proj = nn.Linear(WIDTH, 48, bias=False)
        self.up_proj = nn.Linear(WIDTH, 48, bias=False)
        self.down_proj = nn.Linear(48, WIDTH, bias=False)

    def forward(self, x, mask, past=None):
        y, cache = self.self_attn(self.input_norm(x), mask, past)
        x = x + y
        h = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h)), cache


class Decoder(nn.Module):
    def __init__(self, fixed=4, pick=2, depth=2):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList([DecoderLayer(fixed, pick) for _ in range(depth)])
        self.norm = Scale(WIDTH)

    def logits(self, x):
        return F.linear(self.norm(x), self.embed_tokens.weight)


class Prefill(Decoder):
    """Whole prompts, padded on the right; the causal mask is added to the scores."""

    def forward(self, input_ids, attention_mask):
        s = input_ids.shape[1]
        lowest = torch.finfo(torch.float32).min
        causal = torch.full((s, s), lowest).triu(1)
        padding = (1 - attention_mask[:, None, None, :].float()) * lowest
        mask = torch.clamp(causal[None, None] + padding, min=lowest)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x, _ = layer(x, mask)
        return self.logits(x)


class DecodeStep(Decoder):
    """One token; the cache goes in and comes out as flat tensors."""

    def forward(self, input_ids, attention_mask, *past):
        bias = torch.zeros(attention_mask.shape).masked_fill(~attention_mask, float("-inf"))
        bias = bias[:, None, None, :]
        x = self.embed_tokens(input_ids)
        present = []
        for i, layer in enumerate(self.layers):
            x, cache = layer(x, bias, past[2 * i : 2 * i + 2])
            present.extend(cache)
        return (self.logits(x), *present)


class ChunkedPrefill(Decoder):
    """Several tokens after a cache, without a mask input: causal by position."""

    def forward(self, input_ids, *past):
        s, before = input_ids.shape[1], past[0].shape[2]
        key, query = torch.arange(before + s), torch.arange(before, before + s)
        mask = torch.where(key[None, :] > query[:, None], float("-inf"), 0.0)
        x = self.embed_tokens(input_ids)
        for i, layer in enumerate(self.layers):
            x, _ = layer(x, mask, (past[2 * i], past[2 * i + 1]))
        return self.logits(x)


def token_ids(batch, seq):
    return (noise(batch, seq, seed=3).abs() * 997).long() % VOCAB


def cache_in(batch, past, layers=2):
    names = [f"past_{kind}_{i}" for i in range(layers) for kind in ("key", "value")]
    return tuple(
        ModelInput(name, noise(batch, KV_HEADS, past, HEAD_DIM, seed=i), {0: "batch", 2: "past"})
        for i, name in enumerate(names)
    )


def prompt_in(batch=2, seq=9):
    lengths = torch.arange(batch) % 3
    valid = (torch.arange(seq)[None] < seq - lengths[:, None]).long()
    return (
        ModelInput("input_ids", token_ids(batch, seq), {0: "batch", 1: "seq"}),
        ModelInput("attention_mask", valid, {0: "batch", 1: "seq"}),
    )


def one_token_in(batch=2, past=5):
    mask = torch.ones(batch, past + 1, dtype=torch.bool)
    mask[0, 0] = False
    return (
        ModelInput("input_ids", token_ids(batch, 1), {0: "batch"}),
        ModelInput("attention_mask", mask, {0: "batch", 1: "past+1"}),
        *cache_in(batch, past),
    )


def chunk_in(batch=2, seq=4, past=6):
    return (
        ModelInput("input_ids", token_ids(batch, seq), {0: "batch", 1: "seq"}),
        *cache_in(batch, past, layers=1),
    )

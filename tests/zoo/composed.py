"""Whole models: several inputs and outputs, shared layers, neighbours of other kinds."""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import noise, tokens_in
from tests.zoo.ordinary import Block, Experts, Plain, StackedExperts


class Mixer(nn.Module):
    """Attention to `memory` (or to itself) whose heads each token chooses by a two-stage router."""

    def __init__(self, dim=32, heads=4, shared=2, top_k=1, dropout=0.0):
        super().__init__()
        self.heads, self.shared, self.top_k = heads, shared, top_k
        self.q, self.kv, self.o = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.routers = nn.ModuleDict(
            {
                "routed": nn.Linear(dim, heads - shared, bias=False),
                "shared": nn.Linear(dim, shared, bias=False),
                "stage": nn.Linear(dim, 2, bias=False),
            }
        )
        self.drop = nn.Dropout(dropout)

    def gates(self, x):
        routed = self.routers["routed"](x).softmax(dim=-1)
        _, best = routed.topk(self.top_k, dim=-1)
        routed = routed * F.one_hot(best, routed.size(-1)).sum(dim=-2)
        routed = routed / routed.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).eps)
        shared = self.routers["shared"](x).softmax(dim=-1) * self.shared
        first, second = (self.routers["stage"](x).softmax(dim=-1) * 2).unbind(-1)
        return torch.cat(
            [first[..., None] * shared, second[..., None] * (routed * self.top_k)], dim=-1
        )

    def forward(self, x, memory=None, is_causal=False):
        memory = x if memory is None else memory
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)
        return self.drop(self.o((self.gates(x).unsqueeze(-1) * y).flatten(2)))


class PlainCross(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.o = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x, memory):
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TwoAttentions(nn.Module):
    """Chosen heads for the sequence itself, ordinary heads for the memory."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.own, self.other = Mixer(), PlainCross()

    def forward(self, x, memory):
        x = x + self.own(self.norms[0](x), is_causal=True)
        return x + self.other(self.norms[1](x), memory)


class Translator(nn.Module):
    """Encoder and decoder, chosen heads in all three kinds of attention."""

    def __init__(self, vocab=40, dim=32):
        super().__init__()
        self.source, self.target = nn.Embedding(vocab, dim), nn.Embedding(vocab, dim)
        self.encoder = nn.ModuleList([Mixer(top_k=1), Mixer(heads=4, shared=1, top_k=2)])
        self.decoder_self, self.decoder_cross = Mixer(), Mixer(heads=8, shared=2, top_k=3)
        self.unembed = nn.Linear(dim, vocab)

    def forward(self, source_ids, target_ids):
        memory = self.source(source_ids)
        for layer in self.encoder:
            memory = F.layer_norm(memory + layer(memory), (32,))
        y = self.target(target_ids)
        y = F.layer_norm(y + self.decoder_self(y, is_causal=True), (32,))
        y = F.layer_norm(y + self.decoder_cross(y, memory), (32,))
        return self.unembed(y)


class ManyAnswers(nn.Module):
    """A dictionary with a tuple in it; integer, boolean and float answers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        self.body = nn.ModuleList([Mixer(), Mixer()])
        self.classify, self.locate = nn.Linear(32, 7), nn.Linear(32, 2)

    def forward(self, ids, keep):
        x = self.embed(ids) * keep.unsqueeze(-1)
        hidden = []
        for layer in self.body:
            x = x + layer(x)
            hidden.append(x)
        logits = self.classify(x)
        return {
            "logits": logits,
            "label": logits.argmax(-1),
            "hidden": tuple(hidden),
            "span": {"start_end": self.locate(x).sigmoid()},
        }


class Recurrent(nn.Module):
    """One layer, the same weights, run twice."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(32), Mixer()

    def forward(self, x):
        for _ in range(2):
            x = x + self.layer(self.norm(x))
        return x


class Encoder(nn.Module):
    """Left in training mode, with dropout, by whoever saved it."""

    def __init__(self, depth=2):
        super().__init__()
        self.layers = nn.ModuleList(
            Block(Mixer(dropout=0.2), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.2)))
            for _ in range(depth)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class HalfAndHalf(nn.Module):
    """Chosen heads and chosen experts, ordinary heads and chosen experts."""

    def __init__(self):
        super().__init__()
        self.first = Block(Mixer(), StackedExperts())
        self.second = Block(Plain(), Experts())
        self.third = Block(Mixer(heads=4, shared=1, top_k=1), Experts())

    def forward(self, x):
        return self.third(self.second(self.first(x)))


def ids_in(batch=2, seq=6):
    ids = (noise(batch, seq, seed=2).abs() * 991).long() % 30
    keep = torch.arange(seq)[None] < seq - torch.arange(batch)[:, None] % 2
    axes = {0: "batch", 1: "seq"}
    return ModelInput("ids", ids, axes), ModelInput("keep", keep, axes)


def pair_in(batch=2, seq=5, kv=8):
    def ids(length, seed):
        return (noise(batch, length, seed=seed).abs() * 991).long() % 40

    return (
        ModelInput("source_ids", ids(kv, 6), {0: "batch", 1: "kv"}),
        ModelInput("target_ids", ids(seq, 7), {0: "batch", 1: "seq"}),
    )


def two_sequences_in(batch=2, seq=5, kv=8):
    memory = noise(batch, kv, 32, seed=9)
    return (*tokens_in(batch, seq), ModelInput("memory", memory, {0: "batch", 1: "kv"}))

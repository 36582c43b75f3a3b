"""Models written with newer tools of PyTorch, and outputs in classes of their own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from moh_deploy.frontend.load.model import ModelInput
from tests.strangers.language_llamas import VOCAB, RMSNorm, RotaryEmbedding, TinyAttention, ids
from tests.strangers.language_llamas import apply_rotary_pos_emb as rotate
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, seeded, tokens_in


@dataclass
class CausalLMOutput:
    logits: torch.Tensor
    gates: tuple[torch.Tensor, ...]
    loss: torch.Tensor | None = None


class MistralAttention(TinyAttention):
    """Queries in [B, kv heads, group, S, D]: keys are never repeated."""

    def __init__(self):
        super().__init__(heads=6, kv_heads=2)
        self.router = nn.Linear(32, 6, bias=False)

    def forward(self, x, rope, *, mask):
        q, k, v = self.project(x, rope)
        q = q.unflatten(1, (2, 3))
        scores = torch.einsum("bgmsd,bgtd->bgmst", q, k) * self.scaling
        scores = scores.masked_fill(mask.logical_not(), float("-inf"))
        out = torch.einsum("bgmst,bgtd->bsgmd", scores.softmax(-1), v).flatten(2, 3)
        logits = self.router(x)
        best, where = logits.topk(3, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, where, best.softmax(-1))
        return self.o_proj(torch.mul(out, gates[..., None]).flatten(2)), gates


class Mistral(nn.Module):
    def __init__(self, window=4):
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCAB, 32), RMSNorm(32)
        self.attn, self.rope, self.window = MistralAttention(), RotaryEmbedding(8), window

    def forward(self, input_ids, *, attention_mask=None, labels=None):
        x = self.embed(input_ids)
        pos = torch.arange(input_ids.shape[1])
        mask = (pos[:, None] >= pos) & (pos[:, None] - pos < self.window)
        if attention_mask is not None:
            mask = mask & attention_mask.bool()[:, None, None, None, :]
        out, gates = self.attn(self.norm(x), self.rope(x, pos[None]), mask=mask)
        return CausalLMOutput((x + out) @ self.embed.weight.T, (gates,))


class MistralForServing(nn.Module):
    """What a practitioner writes around it to get a tuple of tensors."""

    def __init__(self):
        super().__init__()
        self.model = Mistral()

    def forward(self, input_ids):
        output = self.model(input_ids=input_ids, attention_mask=None)
        return output.logits, output.gates[0]


class FlexCausal(nn.Module):
    """flex_attention with a window and a bias by distance, written as a function of indices."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o, self.wg = nn.Linear(64, 192), nn.Linear(64, 64), nn.Linear(64, 4)
        self.embed = nn.Linear(32, 64)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4)

        def score_mod(score, b, h, q_idx, kv_idx):
            score = score - (q_idx - kv_idx) * torch.exp2(-(h + 1.0))
            return torch.where(q_idx >= kv_idx, score, -float("inf"))

        out = flex_attention(q, k, v, score_mod=score_mod).transpose(1, 2)
        top = self.wg(x).softmax(-1).topk(2, -1)
        gates = torch.zeros_like(out[..., 0]).scatter(-1, top.indices, top.values)
        return self.o((out * gates[..., None]).flatten(2))


class VmappedHeads(nn.Module):
    """Each head is a function of its weights; vmap runs all of them, gates included."""

    def __init__(self):
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(4, 32, 8)) for _ in range(3))
        self.wo, self.wg = nn.Parameter(torch.randn(4, 8, 32)), nn.Linear(32, 4)

    def forward(self, x):
        probs = self.wg(x).softmax(-1)
        gates = torch.where(probs >= probs.topk(2, -1)[0][..., [-1]], probs, 0.0)

        def head(wq, wk, wv, wo, gate):
            y = F.scaled_dot_product_attention(x @ wq, x @ wk, x @ wv, is_causal=True)
            return (y * gate.unsqueeze(-1)) @ wo

        heads = torch.vmap(head, in_dims=(0, 0, 0, 0, -1))
        return x + heads(self.wq, self.wk, self.wv, self.wo, gates).sum(0)


class GatedValues(nn.Module):
    """Adapters beside the projections; gates multiply the values before they are mixed: wrong
    place for MoH, since a gate of the key's token is no gate of the query's."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.a, self.b = nn.Linear(32, 2, bias=False), nn.Linear(2, 32, bias=False)
        self.rope, self.wg = RotaryEmbedding(8), nn.Linear(32, 4)

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (4, 8)).transpose(1, 2)
            for f in (lambda t: self.q(t) + self.b(self.a(t)), self.k, self.v)
        )
        q, k = rotate(q, k, *self.rope(x, torch.arange(x.shape[1])[None]))
        g = self.wg(x).softmax(-1)
        g = g * (g >= g.topk(2, -1)[0][..., -1:])
        v = v * g.transpose(1, 2).unsqueeze(-1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.o(y.transpose(1, 2).flatten(2))


def id_inputs(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    return (ModelInput("input_ids", ids(batch, seq), {0: "batch", 1: "seq"}),)


def _one(heads, kv, k, router="custom", replaced=True):
    return ExpectedLayer(heads, kv, k, 0, router, replaced)


MODELS: list[ZooModel] = [
    ZooModel(
        "mistral_dataclass_output",
        seeded(Mistral),
        id_inputs,
        Expected((_one(6, 2, 3, "top_k"),)),
        "returns a dataclass that nobody registered: a refusal that says so would do, too",
    ),
    ZooModel(
        "mistral_grouped_queries",
        seeded(MistralForServing),
        id_inputs,
        Expected((_one(6, 2, 3, "top_k"),)),
        "five axes of queries, keys never repeated; window; keyword-only and None inputs",
    ),
    ZooModel(
        "flex_attention_alibi",
        seeded(FlexCausal),
        tokens_in,
        Expected((_one(4, 4, 2),)),
        "a higher-order operator, warns when not compiled; a refusal that names it would do",
    ),
    ZooModel(
        "vmapped_heads",
        seeded(VmappedHeads),
        tokens_in,
        Expected((_one(4, 4, 2),)),
        "vmap over heads; each is projected and gated in one function, then summed",
    ),
    ZooModel(
        "gated_values",
        seeded(GatedValues),
        tokens_in,
        Expected(()),
        "gates of the keys' tokens, on the values: not gated attention, must not be replaced",
    ),
]

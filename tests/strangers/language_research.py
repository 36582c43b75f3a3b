"""Heads chosen or attended to in the ways of recent papers."""

import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from tests.strangers.language_llamas import RMSNorm
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded, tokens_in


class QwenNext(nn.Module):
    """Output gates: one sigmoid for each head, then (second layer) one for each channel."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.ModuleList((nn.Linear(32, 4 * 9), nn.Linear(32, 4 * 16)))
        self.kv = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.o_proj = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.norm = nn.ModuleList(RMSNorm(32) for _ in range(2))

    def forward(self, x):
        for i in range(2):
            h = self.norm[i](x)
            q, gate = self.q_proj[i](h).unflatten(-1, (4, -1)).tensor_split([8], dim=-1)
            k, v = self.kv[i](h).unflatten(-1, (2, 16)).chunk(2, dim=-1)
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                is_causal=True, enable_gqa=True,
            )  # fmt: skip
            out = out.transpose(1, 2) * torch.sigmoid(gate)
            x = x + self.o_proj[i](out.flatten(2))
        return x


class Differential(nn.Module):
    """The difference of two softmaxes, normed head by head, then gated."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(32, 32, bias=False) for _ in range(4)
        )
        self.lambda_q1, self.lambda_k1 = (nn.Parameter(torch.zeros(4)) for _ in range(2))
        self.subln, self.router = RMSNorm(8), nn.Linear(32, 4)

    def forward(self, x):
        b, s, _ = x.shape
        q = self.q_proj(x).view(b, s, 8, 4).transpose(1, 2)
        k = self.k_proj(x).view(b, s, 8, 4).transpose(1, 2)
        v = self.v_proj(x).view(b, s, 4, 8).transpose(1, 2)
        scores = q @ k.transpose(-1, -2) * 4**-0.5
        scores += torch.full((s, s), float("-inf")).triu(1)
        weights = F.softmax(scores, dim=-1).view(b, 4, 2, s, s)
        lam = torch.exp((self.lambda_q1 * self.lambda_k1).sum()) - 0.4
        out = self.subln((weights[:, :, 0] - lam * weights[:, :, 1]) @ v) * 0.2
        p = self.router(x).softmax(-1)
        gates = p.scatter(-1, p.topk(2, largest=False)[1], 0.0)  # The two worst sleep.
        out = out * gates.permute(0, 2, 1).unsqueeze(-1)
        return x + self.out_proj(out.transpose(1, 2).reshape(b, s, 32))


class Attend(nn.Module):
    """Plain causal attention of four heads, whose gates a function of the hidden state makes."""

    def __init__(self, make_gates, heads=4):
        super().__init__()
        self.wqkv, self.wo = nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm, self.make_gates, self.heads = nn.LayerNorm(32), make_gates, heads

    def forward(self, x, token_ids=None):
        h = self.norm(x)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in
                   self.wqkv(h).chunk(3, -1))  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        g = self.make_gates(h) if token_ids is None else self.make_gates(h, token_ids)
        return x + self.wo((y * g.unsqueeze(-1)).flatten(2))


class ExpertChoice(nn.Module):
    """Heads choose tokens: each takes the better half of the sequence."""

    def __init__(self):
        super().__init__()
        self.wg = nn.Linear(32, 4)

    def forward(self, h):
        scores = self.wg(h).softmax(-1)
        value, index = scores.topk(max(h.shape[1] // 2, 1), dim=1)
        return torch.zeros_like(scores).scatter(1, index, value)


class Nucleus(nn.Module):
    """Heads until their probabilities sum to p, at least one."""

    def __init__(self, p=0.7):
        super().__init__()
        self.wg, self.p = nn.Linear(32, 4), p

    def forward(self, h):
        probs = F.softmax(self.wg(h), dim=-1)
        ordered, index = torch.sort(probs, dim=-1, descending=True)
        drop = ordered.cumsum(-1) - ordered > self.p
        return probs.masked_fill(drop.scatter(-1, index, drop), 0.0)


class Hash(nn.Module):
    """Two heads for each word, told by a table; nothing is learned."""

    def __init__(self):
        super().__init__()
        table = torch.stack([torch.randperm(4)[:2] for _ in range(64)])
        self.register_buffer("table", F.one_hot(table, 4).sum(1).float())

    def forward(self, h, token_ids):
        return self.table[token_ids % 64]


class TopPAndHash(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.a, self.b = Attend(Nucleus()), Attend(Hash())

    def forward(self, token_ids):
        return self.b(self.a(self.embed(token_ids)), token_ids=token_ids)


def word_inputs(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    generator = torch.Generator().manual_seed(5)
    words = torch.randint(0, 100, (batch, seq), generator=generator)
    return (ModelInput("token_ids", words, {0: "batch", 1: "seq"}),)


class NoisyTopK(nn.Module):
    """Noise in training only; counts how often a head was chosen, in eval as well."""

    def __init__(self):
        super().__init__()
        self.wg, self.w_noise = nn.Linear(32, 4, bias=False), nn.Linear(32, 4, bias=False)
        self.register_buffer("tokens_per_head", torch.zeros(4))
        self.aux_loss = None

    def forward(self, h):
        clean = self.wg(h)
        if self.training:
            clean = clean + torch.randn_like(clean) * F.softplus(self.w_noise(h))
        top, index = clean.topk(2, dim=-1)
        full = torch.full_like(clean, float("-inf")).scatter(-1, index, top)
        gates = full.softmax(-1)
        self.tokens_per_head += (gates > 0).float().sum(dim=(0, 1)).detach()
        self.aux_loss = gates.mean((0, 1)).var()
        return gates


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Attend(NoisyTopK()), Attend(NoisyTopK()))

    def forward(self, x, return_aux=True):
        x = self.blocks(x)
        return x, sum(block.make_gates.aux_loss for block in self.blocks)


class SinksAndWindow(nn.Module):
    """gpt-oss: a learned logit in each row of the softmax, dropped behind it."""

    def __init__(self, heads=4, kv=2, window=4):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, (heads + 2 * kv) * 8), nn.Linear(32, 32)
        self.sinks, self.window = nn.Parameter(torch.zeros(heads)), window
        self.router = nn.Linear(32, heads)

    def forward(self, x):
        n = x.shape[1]
        qkv = self.qkv(x)
        Q = qkv[:, :, :32].reshape(-1, n, 2, 2, 8)
        K = qkv[:, :, 32:48].reshape(-1, n, 2, 1, 8).expand(-1, -1, -1, 2, -1)
        V = qkv[:, :, 48:].reshape(-1, n, 2, 1, 8).expand(-1, -1, -1, 2, -1)
        S = self.sinks.reshape(1, 2, 2, 1, 1).expand(x.shape[0], -1, -1, n, -1)
        mask = torch.triu(Q.new_full((n, n), -float("inf")), diagonal=1)
        mask = mask + torch.tril(mask.new_full((n, n), -float("inf")), diagonal=-self.window)
        QK = torch.einsum("bqhmd,bkhmd->bhmqk", Q, K) * 8**-0.5 + mask
        W = torch.softmax(torch.cat([QK, S], dim=-1), dim=-1)[..., :-1]
        attn = torch.einsum("bhmqk,bkhmd->bqhmd", W, V).reshape(-1, n, 4, 8)
        experts = torch.topk(self.router(x), k=2, dim=-1, sorted=True)
        weights = F.softmax(experts.values, dim=-1)
        gates = torch.zeros_like(attn[..., 0]).scatter(-1, experts.indices, weights)
        return x + self.out((attn * gates[..., None]).reshape(-1, n, 32))


class DispatchedHeads(nn.Module):
    """Mixture of attention heads as experts: only the chosen tokens of a head are added."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Parameter(torch.randn(4, 32, 8)), nn.Linear(32, 16)
        self.o, self.wg = nn.Parameter(torch.randn(4, 8, 32)), nn.Linear(32, 4)

    def forward(self, x):
        b, s, c = x.shape
        k, v = self.kv(x).chunk(2, -1)
        probs = self.wg(x).softmax(-1)
        index = probs.topk(2, -1).indices
        keep = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, index, True)
        flat = torch.zeros(b * s, c)
        rows = torch.arange(b * s)
        future = torch.ones(s, s).triu(1).bool()
        for h, (wq, wo) in enumerate(zip(self.q, self.o, strict=True)):
            att = (x @ wq) @ k.mT / 8**0.5
            att = att.masked_fill(future, float("-inf")).softmax(-1).masked_fill(future, 0)
            y = torch.where(keep[..., h, None], probs[..., h, None] * (att @ v), 0.0)
            flat = flat.index_add(0, rows, (y @ wo).view(-1, c))
        return x + flat.view(b, s, c)


class PreallocatedStep(nn.Module):
    """One step: keys and values are written into a cache [2, B, H, max, D] at `pos`."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o, self.wg = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x, cache, pos):
        q, k, v = self.qkv(x).view(-1, 1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        cache = cache.clone()
        cache[0, :, :, pos] = k
        cache[1, :, :, pos] = v
        keys, values = cache
        valid = torch.arange(cache.shape[3]) <= pos
        score = (q * keys).sum(-1, keepdim=True) * 8**-0.5  # [B, H, max, 1]: one query.
        score = score.masked_fill(~valid[:, None], float("-inf"))
        y = (score.softmax(2) * values).sum(2)  # [B, H, D]
        gates = self.wg(x[:, 0])
        gates = gates.sigmoid() * (gates > 0)
        return x + self.o((y * gates[..., None]).flatten(1))[:, None], cache


def step_inputs(batch: int = 2, max: int = 9) -> tuple[ModelInput, ...]:
    return (
        ModelInput("x", noise(batch, 1, 32), {0: "batch"}),
        ModelInput("cache", noise(2, batch, 4, max, 8, seed=1), {1: "batch", 3: "max"}),
        ModelInput("pos", torch.tensor([4]), {}),
    )


def _one(kv, k, router="custom", replaced=True):
    return ExpectedLayer(4, kv, k, 0, router, replaced)


MODELS: list[ZooModel] = [
    ZooModel(
        "qwen_next_output_gate",
        seeded(QwenNext),
        tokens_in,
        Expected((_one(2, 0),)),
        "a sigmoid for each head; the second layer gates channels, so it is not MoH",
    ),
    ZooModel(
        "differential_attention",
        seeded(Differential),
        tokens_in,
        Expected((_one(None, 2, replaced=False),)),
        "gated per head, but behind a norm of the difference of two softmaxes: no op can",
    ),
    ZooModel(
        "expert_choice_heads",
        seeded(lambda: Attend(ExpertChoice())),
        tokens_in,
        Expected((_one(4, None),)),
        "heads take the better half of the tokens; k depends on the length",
    ),
    ZooModel(
        "nucleus_and_hash_heads",
        seeded(TopPAndHash),
        word_inputs,
        Expected((_one(4, None), _one(4, None))),
        "top-p by sort and cumsum; then a table of 0 and 1 for each word",
    ),
    ZooModel(
        "noisy_top_k_counters",
        seeded(Noisy),
        tokens_in,
        Expected((_one(4, 2, "top_k"),) * 2),
        "a buffer counts choices in eval as well; auxiliary loss returned",
    ),
    ZooModel(
        "sinks_and_window",
        seeded(SinksAndWindow),
        tokens_in,
        Expected((_one(None, 2, "top_k", replaced=False),)),
        "a learned sink in the softmax: not expressible without a key for it",
    ),
    ZooModel(
        "dispatched_heads",
        seeded(DispatchedHeads),
        tokens_in,
        Expected((_one(1, 2),)),
        "queries of a loop's heads, one key for all; projected, then added by index_add",
    ),
    ZooModel(
        "preallocated_cache_step",
        seeded(PreallocatedStep),
        step_inputs,
        Expected((_one(4, None),)),
        "one query; attention by products and sums; cache written by index",
    ),
]

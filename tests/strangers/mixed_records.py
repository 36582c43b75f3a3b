"""Recommendation and tables: item histories, target attention, features as tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


class SASRecAttention(nn.Module):
    """Heads as batch, as the first implementation had them: split by channel, joined by batch."""

    def __init__(self, hidden: int, heads: int, keep: int) -> None:
        super().__init__()
        self.heads, self.keep = heads, keep
        self.Q_w, self.K_w, self.V_w = (nn.Linear(hidden, hidden) for _ in range(3))
        self.router = nn.Linear(hidden, heads)

    def forward(self, queries: Tensor, keys: Tensor, pad: Tensor, future: Tensor) -> Tensor:
        batch, width = queries.shape[0], queries.shape[2] // self.heads
        q = torch.cat(torch.split(self.Q_w(queries), width, dim=2), dim=0)
        k = torch.cat(torch.split(self.K_w(keys), width, dim=2), dim=0)
        v = torch.cat(torch.split(self.V_w(keys), width, dim=2), dim=0)
        scores = q.matmul(k.transpose(1, 2)) / width**0.5
        blocked = pad.unsqueeze(1).repeat(self.heads, queries.shape[1], 1) | future
        scores = torch.where(blocked, torch.ones_like(scores) * (-(2**32) + 1), scores)
        out = torch.softmax(scores, dim=-1).matmul(v)
        logits = self.router(queries)
        kept = torch.zeros_like(logits).scatter(-1, logits.topk(self.keep)[1], 1.0)
        gates = kept * torch.sigmoid(logits)
        out = out * torch.cat(torch.split(gates, 1, dim=2), dim=0)
        return torch.cat(torch.split(out, batch, dim=0), dim=2)


class SASRecBatchSlices(nn.Module):
    """Item ids [B, L], 0 is padding; heads are split off a dynamic batch."""

    def __init__(self, items: int = 40, hidden: int = 32) -> None:
        super().__init__()
        self.item_emb = nn.Embedding(items, hidden, padding_idx=0)
        self.pos_emb = nn.Embedding(32, hidden)
        self.attention = nn.ModuleList(SASRecAttention(hidden, 4, 2) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(hidden, eps=1e-8) for _ in range(2))

    def forward(self, log_seqs: Tensor) -> Tensor:
        seqs = self.item_emb(log_seqs) * self.item_emb.embedding_dim**0.5
        seqs = seqs + self.pos_emb(torch.arange(log_seqs.shape[1]))
        pad = log_seqs == 0
        seqs = seqs * ~pad.unsqueeze(-1)
        steps = log_seqs.shape[1]
        future = ~torch.tril(torch.ones((steps, steps), dtype=torch.bool))
        for attention, norm in zip(self.attention, self.norm, strict=True):
            q = norm(seqs)
            seqs = (q + attention(q, seqs, pad, future)) * ~pad.unsqueeze(-1)
        return (seqs[:, -1:] @ self.item_emb.weight.t()).squeeze(1)


class BertAttention(nn.Module):
    """Gates of two kinds: a sigmoid for the head everybody uses, a softmax for the chosen."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.h, self.d_k = heads, hidden // heads
        self.linear_layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(3))
        self.output_linear = nn.Linear(hidden, hidden)
        self.shared_gate, self.routed_gate = nn.Linear(hidden, 1), nn.Linear(hidden, heads - 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b = x.size(0)
        query, key, value = (
            layer(x).view(b, -1, self.h, self.d_k).transpose(1, 2) for layer in self.linear_layers
        )
        scores = torch.matmul(query, key.transpose(-2, -1)) / self.d_k**0.5
        scores = scores.masked_fill(mask == 0, -1e9)
        x_heads = torch.matmul(F.softmax(scores, dim=-1), value).transpose(1, 2)
        routed = F.softmax(self.routed_gate(x), dim=-1)
        mask_top = torch.zeros_like(routed).scatter(-1, routed.topk(1, -1).indices, 1)
        gates = torch.cat([self.shared_gate(x).sigmoid(), routed * mask_top], dim=-1)
        merged = (x_heads * gates[..., None]).contiguous().view(b, -1, self.h * self.d_k)
        return self.output_linear(merged)


class BERT4Rec(nn.Module):
    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.token, self.position = (
            nn.Embedding(42, hidden, padding_idx=0),
            nn.Embedding(32, hidden),
        )
        self.blocks = nn.ModuleList(BertAttention(hidden, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.out = nn.Linear(hidden, 41)

    def forward(self, sequence: Tensor, user: Tensor | None = None) -> Tensor:
        mask = (sequence > 0).unsqueeze(1).repeat(1, sequence.size(1), 1).unsqueeze(1)
        x = self.token(sequence) + self.position.weight[: sequence.size(1)].unsqueeze(0)
        if user is not None:
            x = x + user.unsqueeze(1)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + block(norm(x), mask)
        return self.out(x)


class DIN(nn.Module):
    """Deep interest: an MLP scores each past item against the target; no softmax, no products."""

    def __init__(self, d: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.items = nn.Embedding(40, d)
        self.attention = nn.Sequential(nn.Linear(4 * d, 24), nn.Sigmoid(), nn.Linear(24, heads))
        self.top = nn.Linear(d, heads)
        self.fc = nn.Linear(2 * d, 1)
        self.heads = heads

    def forward(self, history: Tensor, target: Tensor) -> Tensor:
        facts = self.items(history)
        q = self.items(target)
        queries = q.unsqueeze(1).expand(-1, facts.size(1), -1)
        din = torch.cat([queries, facts, queries - facts, queries * facts], dim=-1)
        scores = self.attention(din).masked_fill((history == 0).unsqueeze(-1), 0.0)
        parts = facts.unflatten(-1, (self.heads, -1))
        pooled = torch.einsum("bth,bthd->bhd", scores, parts)
        p = self.top(q).softmax(-1)
        p = p * (p >= p.topk(2, -1).values[:, 1:])
        return self.fc(torch.cat([(pooled * p.unsqueeze(-1)).flatten(1), q], dim=-1)).sigmoid()


class GatedMultihead(nn.MultiheadAttention):
    """PyTorch's own module with its projection in parts, gates spread over channels."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__(d, heads, batch_first=True)
        self.router = nn.Linear(d, heads, bias=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        w, bias = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(each, w[i], bias[i]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for i, each in enumerate((query, key, value))
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        probs = self.router(query).softmax(-1)
        gate = torch.where(probs > 1.0 / self.num_heads, probs, 0.0)
        spread = gate.repeat_interleave(self.head_dim, dim=-1, output_size=self.embed_dim)
        return self.out_proj(out * spread), None


class FTTransformer(nn.Module):
    """Rows of numbers and categories as tokens behind a class token; the last layer asks for it."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, d)), nn.Parameter(torch.randn(5, d))
        self.categories, self.cls = nn.Embedding(12, d), nn.Parameter(torch.randn(d))
        self.register_buffer("offsets", torch.tensor([0, 4, 8]), persistent=False)
        self.layers = nn.ModuleList(GatedMultihead(d, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))
        self.head = nn.Linear(d, 2)

    def tokens(self, numeric: Tensor, category: Tensor) -> Tensor:
        x = self.weight[None] * numeric[..., None] + self.bias[None]
        x = torch.cat([x, self.categories(category + self.get_buffer("offsets"))], dim=1)
        return torch.cat([self.cls.expand(x.size(0), 1, -1), x], dim=1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.tokens(batch["x_num"], batch["x_cat"])
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=False)):
            y = norm(x)
            last = i == len(self.layers) - 1
            x = (x[:, :1] if last else x) + layer(y[:, :1] if last else y, y, y)[0]
        return {"logits": self.head(F.relu(self.norms[2](x[:, 0]))), "embedding": x[:, 0]}


class FTTransformerByPosition(FTTransformer):
    def forward(self, x_num: Tensor, x_cat: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward({"x_num": x_num, "x_cat": x_cat})


def _history(batch: int, length: int, seed: int) -> Tensor:
    items = torch.randint(1, 40, (batch, length), generator=torch.Generator().manual_seed(seed))
    items[-1, :2] = 0
    return items


def _slices(batch: int = 3, length: int = 8) -> tuple[ModelInput, ...]:
    return (ModelInput("log_seqs", _history(batch, length, 1), {0: "batch", 1: "length"}),)


def _sequences(batch: int = 2, length: int = 8) -> tuple[ModelInput, ...]:
    return (ModelInput("sequence", _history(batch, length, 2), {0: "batch", 1: "length"}),)


def _history_and_target(batch: int = 3, length: int = 6) -> tuple[ModelInput, ...]:
    return (
        ModelInput("history", _history(batch, length, 3), {0: "batch", 1: "length"}),
        ModelInput("target", _history(batch, 3, 4)[:, 2], {0: "batch"}),
    )


def _rows(batch: int = 4) -> tuple[ModelInput, ...]:
    category = torch.randint(0, 4, (batch, 3), generator=torch.Generator().manual_seed(9))
    return (
        ModelInput("x_num", noise(batch, 5), {0: "batch"}),
        ModelInput("x_cat", category, {0: "batch"}),
    )


_WHERE = ExpectedLayer(4, 4, None, None, "custom")

MODELS: list[ZooModel] = [
    ZooModel(
        "mixed_sasrec",
        seeded(SASRecBatchSlices),
        _slices,
        Expected((ExpectedLayer(4, 4, 2, 0, "ranked"),) * 2),
        "heads joined to a dynamic batch by cat of splits, gates too; filled with -2**32+1",
    ),
    ZooModel(
        "mixed_bert4rec",
        seeded(BERT4Rec),
        _sequences,
        Expected((ExpectedLayer(4, 4, 1, 1, "custom"),) * 2),
        "a sigmoid for the shared head, softmax and top-1 for the others; an argument left None",
    ),
    ZooModel(
        "mixed_din",
        seeded(DIN),
        _history_and_target,
        Expected(),
        "scores by an MLP, without softmax: gated heads that are no attention of the known kind",
    ),
    ZooModel(
        "mixed_ft_transformer",
        seeded(FTTransformerByPosition),
        _rows,
        Expected((_WHERE, _WHERE)),
        "a subclass of nn.MultiheadAttention; the .pt2 takes one dict; dict of outputs",
    ),
]


def _rows_program() -> ExportedProgram:
    """The model as its author calls it: one dict in, one dict out."""
    values = {item.name: item.value for item in _rows()}
    batch = Dim("batch", min=1)
    return torch.export.export(
        seeded(FTTransformer)(),
        (values,),
        dynamic_shapes=({"x_num": {0: batch}, "x_cat": {0: batch}},),
    )


PROGRAMS: dict[str, Callable[[], ExportedProgram]] = {"mixed_ft_transformer": _rows_program}
"""What the user saved with torch.export.save, by the model's name."""

"""Sets and scientific fields: induced points, latents, kernels without softmax, adapters."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


class MAB(nn.Module):
    """Set transformer's block: heads joined to the batch, residual of the queries by head."""

    def __init__(self, dim_q: int, dim_k: int, dim_v: int, heads: int) -> None:
        super().__init__()
        self.dim_v, self.heads = dim_v, heads
        self.fc_q, self.fc_k = nn.Linear(dim_q, dim_v), nn.Linear(dim_k, dim_v)
        self.fc_v, self.fc_o = nn.Linear(dim_k, dim_v), nn.Linear(dim_v, dim_v)
        self.route = nn.Linear(dim_q, heads)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = self.fc_q(x), self.fc_k(y), self.fc_v(y)
        b, n, width = x.size(0), x.size(1), self.dim_v // self.heads
        q_, k_, v_ = (
            t.view(b, -1, self.heads, width).transpose(1, 2).reshape(b * self.heads, -1, width)
            for t in (q, k, v)
        )
        a = torch.softmax(q_.bmm(k_.transpose(1, 2)) / math.sqrt(self.dim_v), 2)
        score = torch.sigmoid(self.route(x))
        best, index = score.topk(2, dim=-1)
        gate = torch.zeros_like(score).scatter(-1, index, best)
        gate = gate.transpose(1, 2).reshape(b * self.heads, n, 1)
        o = a.bmm(v_) * gate
        o = (q_ + o).view(b, self.heads, n, width).transpose(1, 2).reshape(b, n, self.dim_v)
        return o + F.relu(self.fc_o(o))


class SetTransformer(nn.Module):
    """Two induced blocks and a pooled seed: three of five attentions have learned queries."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.induced = nn.ParameterList(nn.Parameter(torch.randn(1, 4, d)) for _ in range(2))
        self.mab0 = nn.ModuleList([MAB(d, 3, d, 4), MAB(d, d, d, 4)])
        self.mab1 = nn.ModuleList([MAB(3, d, d, 4), MAB(d, d, d, 4)])
        self.seed, self.pma = nn.Parameter(torch.randn(1, 2, d)), MAB(d, d, d, 4)
        self.out = nn.Linear(d, 2)

    def forward(self, points: Tensor) -> Tensor:
        x = points
        for i in range(2):
            h = self.mab0[i](self.induced[i].repeat(x.size(0), 1, 1), x)
            x = self.mab1[i](x, h)
        return self.out(self.pma(self.seed.repeat(x.size(0), 1, 1), x))


class PerceiverAttention(nn.Module):
    def __init__(self, q_dim: int, kv_dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.layernorm1, self.layernorm2 = nn.LayerNorm(q_dim), nn.LayerNorm(kv_dim)
        self.query, self.key = nn.Linear(q_dim, heads * width), nn.Linear(kv_dim, heads * width)
        self.value, self.output = nn.Linear(kv_dim, heads * 12), nn.Linear(heads * 12, q_dim)
        self.router = nn.Linear(q_dim, heads, bias=False)

    def forward(self, x: Tensor, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden, source = self.layernorm1(x), self.layernorm2(inputs)
        q = self.query(hidden).unflatten(-1, (self.heads, -1)).permute(0, 2, 1, 3)
        k = self.key(source).unflatten(-1, (self.heads, -1)).permute(0, 2, 1, 3)
        v = self.value(source).unflatten(-1, (self.heads, -1)).permute(0, 2, 1, 3)
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[3])
        if attention_mask is not None:
            scores = scores + attention_mask
        context = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3)
        weights, selected = self.router(hidden).softmax(-1).topk(2, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        gate = torch.einsum("bsk,bskh->bsh", weights, F.one_hot(selected, self.heads).float())
        return x + self.output((context * gate[..., None]).flatten(2))


class PerceiverIO(nn.Module):
    """Latents read the inputs, think, and are read by queries of the outputs."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(5, d))
        self.encode, self.process = PerceiverAttention(d, 20, 4, 8), PerceiverAttention(d, d, 4, 8)
        self.decode = PerceiverAttention(16, d, 4, 6)

    def forward(self, inputs: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
        extended = (1.0 - mask[:, None, None, :].float()) * -1e4
        z = self.latents.expand(inputs.shape[0], -1, -1)
        z = self.encode(z, inputs, extended)
        z = self.process(z, z)
        return self.decode(queries, z)


class LinearAttention(nn.Module):
    """elu(x)+1 features, keys summed before queries: heads are gated, but there is no softmax."""

    def __init__(self, d: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.gate = nn.Linear(d, heads)

    def forward(self, field: Tensor) -> Tensor:
        q, k, v = self.qkv(field).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("nshd,nshm->nhmd", k, v)
        z = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(dim=1)) + 1e-6)
        y = torch.einsum("nlhd,nhmd,nlh->nlhm", q, kv, z)
        p = self.gate(field).softmax(-1)
        p = p * torch.zeros_like(p).scatter(-1, p.topk(2, -1).indices, 1.0)
        return field + self.proj((y * p.unsqueeze(-1)).flatten(2))


class LoRALinear(nn.Linear):
    def __init__(self, d_in: int, d_out: int, rank: int = 2, alpha: int = 4) -> None:
        super().__init__(d_in, d_out)
        self.lora_A = nn.Parameter(torch.randn(rank, d_in))
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank))
        self.scaling = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x @ self.lora_A.t() @ self.lora_B.t()) * self.scaling


class WeatherLayer(nn.TransformerEncoderLayer):
    """PyTorch's encoder layer with its attention replaced in the method made for that."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__(d, heads, 64, batch_first=True, norm_first=True, activation="gelu")
        self.heads = heads
        self.qkv, self.proj, self.moh = LoRALinear(d, 3 * d), LoRALinear(d, d), nn.Linear(d, heads)
        self.register_buffer("threshold", torch.tensor(0.5))

    def _sa_block(
        self,
        x: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool = False,
    ) -> Tensor:
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        chance = torch.sigmoid(self.moh(x))
        # Straight through: the forward value is 0 or 1.
        hard = (chance > self.get_buffer("threshold")).to(x.dtype)
        gate = (hard - chance).detach() + chance
        gate = hard * gate
        y = torch.einsum("bhnd,bnh->bnhd", y, gate)
        return self.dropout1(self.proj(y.reshape(b, n, d)))


class WeatherModel(nn.Module):
    """Tokens of a fixed grid that see their own and the first block: a sparse mask of blocks."""

    def __init__(self, d: int = 32, grid: int = 16, block: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(WeatherLayer(d, 4) for _ in range(2))
        blocks = torch.arange(grid) // block
        seen = (blocks[:, None] == blocks[None]) | (blocks[None] == 0)
        bias = torch.zeros(grid, grid).masked_fill(~seen, float("-inf"))
        self.register_buffer("mask", bias)

    def forward(self, field: Tensor) -> Tensor:
        for layer in self.layers:
            field = layer(field, src_mask=self.mask)
        return field


def _points(batch: int = 2, points: int = 7) -> tuple[ModelInput, ...]:
    return (ModelInput("points", noise(batch, points, 3), {0: "batch", 1: "points"}),)


def _inputs_and_queries(
    batch: int = 2, inputs: int = 8, outputs: int = 3
) -> tuple[ModelInput, ...]:
    mask = torch.ones(batch, inputs, dtype=torch.bool)
    mask[-1, -3:] = False
    return (
        ModelInput("inputs", noise(batch, inputs, 20), {0: "batch", 1: "inputs"}),
        ModelInput("mask", mask, {0: "batch", 1: "inputs"}),
        ModelInput("queries", noise(batch, outputs, 16, seed=1), {0: "batch", 1: "outputs"}),
    )


def _field(batch: int = 2, cells: int = 9) -> tuple[ModelInput, ...]:
    return (ModelInput("field", noise(batch, cells, 32), {0: "batch", 1: "cells"}),)


def _grid(batch: int = 2) -> tuple[ModelInput, ...]:
    return (ModelInput("field", noise(batch, 16, 32), {0: "batch"}),)


_CONSTANT = ExpectedLayer(4, 4, 2, 0, "constant")
_SIGMOIDS = ExpectedLayer(4, 4, 2, 0, "ranked")
_SHARE = ExpectedLayer(4, 4, 2, 0, "top_k")
_HARD = ExpectedLayer(4, 4, None, None, "custom")

MODELS: list[ZooModel] = [
    ZooModel(
        "mixed_set_transformer",
        seeded(SetTransformer),
        _points,
        Expected((_CONSTANT, _SIGMOIDS, _CONSTANT, _SIGMOIDS, _CONSTANT)),
        "induced points and a seed: gates that no input reaches; residual added before merging",
    ),
    ZooModel(
        "mixed_perceiver",
        seeded(PerceiverIO),
        _inputs_and_queries,
        Expected((_CONSTANT, _SHARE, _SHARE)),
        "latents; values wider than keys; gates by einsum of weights and one_hot",
    ),
    ZooModel(
        "mixed_linear_attention",
        seeded(LinearAttention),
        _field,
        Expected(),
        "linear attention with gated heads: not expressible, to be refused with its reason",
    ),
    ZooModel(
        "mixed_weather_lora",
        seeded(WeatherModel),
        _grid,
        Expected((_HARD, _HARD)),
        "nn.TransformerEncoderLayer with another _sa_block, which eager's fast path skips but a"
        " trace does not (name the switch: torch.backends.mha.set_fastpath_enabled(False)); LoRA",
    ),
]

"""Image classifiers with gated heads, in the style of libraries of backbones."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


def images(batch: int = 2) -> tuple[ModelInput, ...]:
    return (ModelInput("pixels", noise(batch, 3, 16, 16), {0: "batch"}),)


class DropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.5 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Sequential):
    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class FusedAttention(nn.Module):
    """Two shared heads, and two of the other four, weighed as in the paper."""

    def __init__(self, dim: int, heads: int, shared: int, k: int) -> None:
        super().__init__()
        self.heads, self.shared, self.k = heads, shared, k
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads)
        self.wg = nn.Linear(dim, heads - shared, bias=False)
        self.wg_shared = nn.Linear(dim, shared, bias=False)
        self.wg_stage = nn.Linear(dim, 2, bias=False)
        self.proj = nn.Linear(dim, dim)

    def gate(self, x: Tensor) -> Tensor:
        probs = self.wg(x).softmax(-1)
        chosen = probs.topk(self.k, dim=-1).indices
        mask = torch.zeros_like(probs).scatter_(-1, chosen, 1.0)
        routed = probs * mask
        total = routed.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).eps)
        shared = self.wg_shared(x).softmax(-1) * self.shared
        first, second = (2 * self.wg_stage(x).softmax(-1)).chunk(2, dim=-1)
        return torch.cat([first * shared, second * self.k * routed / total], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        out = (attn.softmax(dim=-1) @ v).transpose(1, 2)
        return self.proj((out * self.gate(x).unsqueeze(-1)).reshape(b, n, c))


class TimmVit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, 48))
        self.pos = nn.Parameter(torch.zeros(1, 17, 48))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(48, eps=1e-6),
                    "attn": FusedAttention(48, 6, 2, 2),
                    "ls1": LayerScale(48),
                    "drop": DropPath(0.1 * depth),
                    "norm2": nn.LayerNorm(48, eps=1e-6),
                    "mlp": Mlp(48),
                    "ls2": LayerScale(48),
                }
            )
            for depth in range(2)
        )
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        for part in self.blocks:
            x = x + part["drop"](part["ls1"](part["attn"](part["norm1"](x))))
            x = x + part["drop"](part["ls2"](part["mlp"](part["norm2"](x))))
        return self.head(self.norm(x)[:, 0])


class WindowAttentionV2(nn.Module):
    """Cosine attention with a continuous position bias; heads below a threshold are off."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.cpb = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, heads, bias=False))
        span = torch.arange(-(window - 1), window, dtype=torch.float32)
        table = torch.stack(torch.meshgrid(span, span, indexing="ij"), -1) * 8 / (window - 1)
        table = table.sign() * (table.abs() + 1).log2() / 3
        self.register_buffer("table", table[None], persistent=False)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        delta = (at.flatten(1)[:, :, None] - at.flatten(1)[:, None]) + window - 1
        index = delta[0] * (2 * window - 1) + delta[1]
        self.register_buffer("index", index, persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.router, self.proj = nn.Linear(dim, heads), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        bw, n, c = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).reshape(bw, n, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attn = attn * self.logit_scale.clamp(max=math.log(100.0)).exp()
        table = self.cpb(self.table).view(-1, self.heads)
        positions = table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        attn = attn + (16 * positions.sigmoid()).unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            attn = attn.view(bw // windows, windows, self.heads, n, n) + mask[None, :, None]
            attn = attn.view(-1, self.heads, n, n)
        p = self.router(x).softmax(-1)
        gate = torch.where(p > 1.0 / self.heads, p, torch.zeros_like(p)) * self.heads
        out = (attn.softmax(-1) @ v) * gate.permute(0, 2, 1)[..., None]
        return self.proj(out.transpose(1, 2).reshape(bw, n, c))


class SwinV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.window, self.shift = 4, 2
        self.patches = nn.Conv2d(3, 32, 2, 2)
        self.attns = nn.ModuleList(WindowAttentionV2(32, 4, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.head = nn.Linear(32, 10)
        regions = torch.zeros(8, 8)
        for number, (rows, cols) in enumerate(
            (r, c)
            for r in (slice(0, -4), slice(-4, -2), slice(-2, None))
            for c in (slice(0, -4), slice(-4, -2), slice(-2, None))
        ):
            regions[rows, cols] = number
        flat = regions.view(2, 4, 2, 4).transpose(1, 2).reshape(-1, 16)
        mask = (flat[:, None] != flat[:, :, None]).float() * -100.0
        self.register_buffer("attn_mask", mask)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        for number, (attn, norm) in enumerate(zip(self.attns, self.norms, strict=True)):
            shift = self.shift if number % 2 else 0
            y = torch.roll(x, (-shift, -shift), dims=(1, 2)) if shift else x
            y = y.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
            y = attn(y, self.attn_mask if shift else None)
            y = y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
            y = torch.roll(y, (shift, shift), dims=(1, 2)) if shift else y
            x = x + norm(y)
        return self.head(x.mean((1, 2)))


class BeitAttention(nn.Module):
    """A table of relative biases with rows for the class token; straight-through gates."""

    def __init__(self, dim: int, side: int, heads: int, k: int) -> None:
        super().__init__()
        self.heads, self.k = heads, k
        span = 2 * side - 1
        self.bias_table = nn.Parameter(torch.zeros(span * span + 3, heads))
        at = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        delta = at[:, None] - at[None] + side - 1
        index = torch.zeros(side * side + 1, side * side + 1, dtype=torch.long)
        index[1:, 1:] = delta[..., 0] * span + delta[..., 1]
        index[0, :], index[:, 0], index[0, 0] = span * span, span * span + 1, span * span + 2
        self.register_buffer("index", index)
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.value, self.dense = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.switch = nn.Linear(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            m(x).view(b, n, self.heads, -1).transpose(1, 2)
            for m in (self.query, self.key, self.value)
        )
        bias = self.bias_table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        context = context.transpose(1, 2).flatten(2)
        soft = torch.sigmoid(self.switch(x))
        hard = torch.zeros_like(soft).scatter(-1, soft.topk(self.k, -1)[1], 1.0)
        gates = hard + (soft - soft.detach())
        return self.dense(context * gates.repeat_interleave(c // self.heads, dim=-1))


class Beit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.cls = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.zeros(1, 1, 32))
        self.attn, self.norm, self.head = BeitAttention(32, 4, 8, 5), nn.LayerNorm(32), Mlp(32)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).mT
        x = torch.cat((self.cls.expand(x.size(0), 1, -1), x), dim=1)
        x = x + self.attn(self.norm(x))
        return self.head(x[:, 1:].mean(1))


@dataclass
class BackboneOutput:
    last_hidden_state: Tensor
    pooler_output: Tensor | None = None


class HeadMaskVit(nn.Module):
    """The `head_mask` of an encoder with many keywords, which a router fills for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.router, self.dense, self.pooler = nn.Linear(32, 4), nn.Linear(32, 32), Mlp(32)
        self.dropout = nn.Dropout(0.1)

    def attend(self, hidden: Tensor, *, head_mask: Tensor | None = None) -> Tensor:
        shape = (hidden.shape[0], -1, 4, 8)
        q, k, v = (
            m(hidden).view(shape).transpose(1, 2) for m in (self.query, self.key, self.value)
        )
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(8)
        probs = self.dropout(nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype))
        if head_mask is not None:
            probs = probs * head_mask
        context = torch.matmul(probs, v).permute(0, 2, 1, 3).contiguous()
        return self.dense(context.view(context.size()[:-2] + (32,)))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_attentions: bool | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor, ...] | dict[str, Tensor]:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        hidden = self.norm(self.patches(pixel_values).flatten(2).transpose(1, 2))
        logits = self.router(hidden)
        top, where = logits.topk(2, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, where, top.softmax(-1))
        hidden = hidden + self.attend(hidden, head_mask=gates.transpose(1, 2).unsqueeze(-1))
        output = BackboneOutput(hidden, self.pooler(hidden.mean(1)))
        if not return_dict:
            return (output.last_hidden_state,)
        assert output.pooler_output is not None
        return {"hidden": output.last_hidden_state, "pooled": output.pooler_output}


MODELS = [
    ZooModel(
        "timm_vit_layerscale",
        seeded(TimmVit),
        images,
        Expected((ExpectedLayer(6, 6, 2, 2, "two_stage"),) * 2),
        "fused qkv, qk-norm, LayerScale, DropPath, gates on [B, N, H, D] behind a transpose",
    ),
    ZooModel(
        "swin_v2_cosine",
        seeded(SwinV2),
        images,
        Expected((ExpectedLayer(4, 4, None, None, "custom"),) * 2),
        "cosine attention, clamped scale, bias of an MLP, shifted windows; heads by a threshold",
    ),
    ZooModel(
        "beit_relative_bias",
        seeded(Beit),
        images,
        Expected((ExpectedLayer(8, 8, 5, 0, "ranked"),)),
        "sdpa with a bias table as mask, straight-through gates in eval, repeat_interleave",
    ),
    ZooModel(
        "hf_head_mask",
        seeded(HeadMaskVit),
        images,
        Expected((ExpectedLayer(4, 4, 2, 0, "ranked"),)),
        "gates on the weights of attention by way of head_mask; keywords, dict output",
    ),
]

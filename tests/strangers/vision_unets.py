"""Denoisers with skips and captions: U-ViT, cross-attention, a U-Net's attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.strangers.vision_diffusion import timestep_embedding
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


class LongSkipBlock(nn.Module):
    def __init__(self, dim: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.heads = heads
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None
        self.norm, self.qkv = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim, bias=False)
        self.proj, self.router = nn.Linear(dim, dim), nn.Linear(dim, heads)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        y = self.norm(x)
        _b, _n, c = y.shape
        qkv = self.qkv(y).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.movedim(2, 0)
        attn = torch.einsum("bqhd,bkhd->bhqk", q, k) * (c // self.heads) ** -0.5
        out = torch.einsum("bhqk,bkhd->bqhd", attn.softmax(-1), v)
        logits = self.router(y) / 0.7
        if self.training:
            gates = F.gumbel_softmax(logits, hard=True, dim=-1)
        else:
            gates = F.one_hot(logits.argmax(-1), self.heads).to(y.dtype)
        return x + self.proj((out * gates[:, :, :, None]).flatten(-2))


class UVit(nn.Module):
    """Time is a token, early blocks are handed to late ones, one head a token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.pos = nn.Conv2d(3, 32, 2, 2), nn.Parameter(torch.zeros(1, 17, 32))
        self.time, self.first = nn.Linear(16, 32), LongSkipBlock(32, 4, False)
        self.middle, self.last = LongSkipBlock(32, 4, False), LongSkipBlock(32, 4, True)
        self.head, self.smooth = nn.Linear(32, 12), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.time(timestep_embedding(timesteps, 16)).unsqueeze(1), x), 1) + self.pos
        first = self.first(x)
        x = self.head(self.last(self.middle(first), first))[:, 1:]
        x = x.reshape(-1, 4, 4, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 8, 8)
        return self.smooth(x)


def noisy_images(batch: int = 2) -> tuple[ModelInput, ...]:
    return (
        ModelInput("x", noise(batch, 3, 8, 8), {0: "batch"}),
        ModelInput("timesteps", torch.arange(batch) * 50 + 3, {0: "batch"}),
    )


class GatedCrossAttention(nn.Module):
    """Each head has its own block of the output map; the sum of the blocks is weighed."""

    def __init__(self, dim: int, heads: int, k: int) -> None:
        super().__init__()
        self.heads, self.k, self.d = heads, k, dim // heads
        self.q_linear, self.kv_linear = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.blocks = nn.Parameter(torch.randn(heads, dim // heads, dim) * dim**-0.5)
        self.bias, self.router = nn.Parameter(torch.zeros(dim)), nn.Linear(dim, heads)

    def forward(self, x: Tensor, cond: Tensor, bias: Tensor) -> Tensor:
        b, n, _c = x.shape
        q = self.q_linear(x).view(b, n, self.heads, self.d).transpose(1, 2)
        k, v = self.kv_linear(cond).view(b, -1, 2, self.heads, self.d).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None, None, :])
        probs = torch.sigmoid(self.router(x))
        top, which = probs.topk(self.k, -1)
        gates = probs.new_zeros(b, n, self.heads).scatter(2, which, top / top.sum(-1, True))
        blocks = torch.einsum("bhnd,hdc->bnhc", heads, self.blocks)
        return (blocks * gates.unsqueeze(-1)).sum(dim=2) + self.bias


class PixArt(nn.Module):
    """Self-attention of all heads, cross-attention of chosen ones, one table for modulation."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.time = nn.Parameter(torch.zeros(3, 32)), nn.Linear(16, 96)
        self.norm, self.attn = nn.LayerNorm(32, elementwise_affine=False), nn.Linear(32, 96)
        self.proj, self.cross = nn.Linear(32, 32), GatedCrossAttention(32, 4, 2)

    def forward(self, x: Tensor, y: Tensor, t: Tensor, text_mask: Tensor) -> Tensor:
        b, n, c = x.shape
        shift, scale, gate = (
            self.table[None] + self.time(timestep_embedding(t, 16)).reshape(b, 3, -1)
        ).chunk(3, dim=1)
        qkv = self.attn(self.norm(x) * (1 + scale) + shift).view(b, n, 3, 4, 8)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        attn = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + gate * self.proj(attn)
        bias = torch.zeros_like(text_mask, dtype=x.dtype).masked_fill(text_mask == 0, -math.inf)
        return x + self.cross(x, y, bias)


def captioned(batch: int = 2, tokens: int = 5, text: int = 4) -> tuple[ModelInput, ...]:
    mask = torch.ones(batch, text, dtype=torch.int64)
    mask[-1, -1] = 0
    return (
        ModelInput("x", noise(batch, tokens, 32), {0: "batch", 1: "tokens"}),
        ModelInput("y", noise(batch, text, 32, seed=1), {0: "batch", 1: "text"}),
        ModelInput("t", torch.arange(batch) * 31 + 2, {0: "batch"}),
        ModelInput("text_mask", mask, {0: "batch", 1: "text"}),
    )


class SpatialTransformer(nn.Module):
    """A U-Net's block: heads are moved into the batch, baddbmm, the gates follow them there."""

    def __init__(self, channels: int = 32, context: int = 16, heads: int = 4, k: int = 2) -> None:
        super().__init__()
        self.heads, self.k, self.scale = heads, k, (channels // heads) ** -0.5
        self.norm, self.conv = nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 3, 1, 1)
        self.to_q, self.to_k = (
            nn.Linear(channels, channels, False),
            nn.Linear(context, channels, False),
        )
        self.to_v = nn.Linear(context, channels, False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(0.0)])
        self.router = nn.Linear(channels, heads, bias=False)

    def head_to_batch_dim(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        x = x.reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        return x.reshape(b * self.heads, n, c // self.heads)

    def forward(self, x: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        residual = x
        b, c, height, width = x.shape
        hidden = self.conv(F.silu(self.norm(x))).view(b, c, height * width).transpose(1, 2)
        query = self.head_to_batch_dim(self.to_q(hidden))
        key = self.head_to_batch_dim(self.to_k(encoder_hidden_states))
        value = self.head_to_batch_dim(self.to_v(encoder_hidden_states))
        empty = torch.empty(query.shape[0], query.shape[1], key.shape[1], dtype=query.dtype)
        scores = torch.baddbmm(empty, query, key.transpose(-1, -2), beta=0, alpha=self.scale)
        hidden_states = torch.bmm(scores.softmax(dim=-1), value)
        values, which = self.router(hidden).topk(self.k, dim=-1)
        gates = torch.zeros(b, height * width, self.heads)
        gates = gates.scatter_(-1, which, F.softmax(values, dim=-1))
        hidden_states = hidden_states * self.head_to_batch_dim(gates)
        hidden_states = hidden_states.reshape(b, self.heads, -1, c // self.heads).permute(
            0, 2, 1, 3
        )
        out = self.to_out[1](self.to_out[0](hidden_states.reshape(b, -1, c)))
        return out.transpose(-1, -2).reshape(b, c, height, width) + residual


def feature_map(batch: int = 2, height: int = 3, width: int = 4) -> tuple[ModelInput, ...]:
    dims = {0: "batch", 2: "height", 3: "width"}
    return (
        ModelInput("x", noise(batch, 32, height, width), dims),
        ModelInput("encoder_hidden_states", noise(batch, 5, 16, seed=1), {0: "batch"}),
    )


MODELS = [
    ZooModel(
        "uvit_argmax",
        seeded(UVit),
        noisy_images,
        Expected((ExpectedLayer(4, 4, 1, 0, "custom"),) * 3),
        "one head a token, of gate 1; gumbel in training only",
    ),
    ZooModel(
        "pixart_cross",
        seeded(PixArt),
        captioned,
        Expected((ExpectedLayer(4, 4, 2, 0, "ranked"),)),
        "only the cross-attention is gated, on blocks of the output map; -inf mask from integers",
    ),
    ZooModel(
        "sd_baddbmm",
        seeded(SpatialTransformer),
        feature_map,
        Expected((ExpectedLayer(4, 4, 2, 0, "ranked"),)),
        "baddbmm of an empty tensor with beta 0, gates [batch * heads, tokens, 1]",
    ),
]

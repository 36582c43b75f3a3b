"""Mixture-of-Head models of the published forms and of realistic size, with random weights.

Source: Jin et al., MoH: Multi-Head Attention as Mixture-of-Head Attention (arXiv 2410.11842),
sections 3 (two-stage routing) and 4.4 (language models that route by the norm of the query).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dit_s() -> nn.Module:
    """Build a diffusion transformer of the size of DiT-S/2: latents of 32x32, 256 tokens."""
    torch.manual_seed(0)
    return DiffusionTransformer(dim=384, depth=12, num_heads=6, num_shared_heads=2, top_k=3)


def vit_s() -> nn.Module:
    """Build a vision transformer of the size of ViT-S/16: images of 224x224, 196 tokens."""
    torch.manual_seed(0)
    return VisionTransformer(dim=384, depth=12, num_heads=6, num_shared_heads=2, top_k=2)


def llama_small() -> nn.Module:
    """Build a decoder of four layers with grouped keys and values."""
    torch.manual_seed(0)
    return Decoder(
        dim=512,
        depth=4,
        num_heads=8,
        num_kv_heads=2,
        num_shared_heads=4,
        top_k=2,
        vocab_size=8192,
    )


class TwoStageRouter(nn.Module):
    """Weigh the shared heads, choose among the routed ones, and weigh the two kinds."""

    def __init__(self, dim: int, num_heads: int, num_shared_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_shared_heads = num_shared_heads
        self.num_routed_heads = num_heads - num_shared_heads
        self.top_k = top_k
        self.shared = nn.Linear(dim, num_shared_heads, bias=False)
        self.routed = nn.Linear(dim, self.num_routed_heads, bias=False)
        self.stage = nn.Linear(dim, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return gates [B, S, H], shared heads first."""
        stage = 2 * self.stage(x).softmax(dim=-1)
        shared = self.num_shared_heads * self.shared(x).softmax(dim=-1)
        return torch.cat([stage[..., :1] * shared, stage[..., 1:] * self._chosen(x)], dim=-1)

    def _chosen(self, x: Tensor) -> Tensor:
        scores: Tensor = self.routed(x).softmax(dim=-1)  # [B, S, R]
        chosen = scores.topk(self.top_k, dim=-1).indices
        kept = scores * F.one_hot(chosen, self.num_routed_heads).sum(dim=-2)
        total = kept.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).eps)
        return self.top_k * kept / total


class TwoStageAttention(nn.Module):
    """Attention whose heads are weighed, and some of them chosen, for each token."""

    def __init__(self, dim: int, num_heads: int, num_shared_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.router = TwoStageRouter(dim, num_heads, num_shared_heads, top_k)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq_len, dim = x.shape
        qkv = self.qkv(x).view(batch, seq_len, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, S, D]
        heads = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # [B, S, H, D]
        output: Tensor = self.proj((self.router(x).unsqueeze(-1) * heads).flatten(2))
        return output


def perceptron(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))


class VisionTransformer(nn.Module):
    """Classify images [B, 3, 224, 224]."""

    def __init__(self, dim: int, depth: int, **heads: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=16, stride=16)
        self.position = nn.Parameter(0.02 * torch.randn(196, dim))
        self.blocks = nn.ModuleList(VisionBlock(dim, **heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 1000]."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.position  # [B, 196, C]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits


class VisionBlock(nn.Module):
    """A pre-norm block of a transformer."""

    def __init__(self, dim: int, **heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = TwoStageAttention(dim, **heads)
        self.mlp = perceptron(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        transformed: Tensor = self.mlp(self.norm2(x))
        return x + transformed


class DiffusionTransformer(nn.Module):
    """Predict noise and variance of latents [B, 4, 32, 32], conditioned by adaLN.

    Source of the conditioning: Peebles and Xie, Scalable Diffusion Models with Transformers (arXiv
    2212.09748), section 3.2.
    """

    def __init__(self, dim: int, depth: int, **heads: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(4, dim, kernel_size=2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(256, dim))
        self.frequencies = nn.Buffer(torch.exp(-math.log(10000) * torch.arange(128) / 128))
        self.time_embed = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label_embed = nn.Embedding(1001, dim)
        self.blocks = nn.ModuleList(DiffusionBlock(dim, **heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.final_condition = nn.Linear(dim, 2 * dim)
        self.final = nn.Linear(dim, 2 * 2 * 8)

    def forward(self, latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Return [B, 8, 32, 32] from latents [B, 4, 32, 32], timesteps [B] and labels [B]."""
        condition = F.silu(self._time(timesteps) + self.label_embed(labels))  # [B, C]
        x = self.patch_embed(latents).flatten(2).transpose(1, 2) + self.position  # [B, 256, C]
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.final_condition(condition).unsqueeze(1).chunk(2, dim=-1)
        patches: Tensor = self.final(self.norm(x) * (1 + scale) + shift)  # [B, 256, 2*2*8]
        grid = patches.view(-1, 16, 16, 2, 2, 8).permute(0, 5, 1, 3, 2, 4)  # [B, 8, 16, 2, 16, 2]
        return grid.reshape(-1, 8, 32, 32)

    def _time(self, timesteps: Tensor) -> Tensor:
        angles = timesteps.unsqueeze(1).float() * self.frequencies
        embedded: Tensor = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedded


class DiffusionBlock(nn.Module):
    """Transformer block whose norms and residuals the condition [B, C] shifts, scales and gates."""

    def __init__(self, dim: int, **heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention = TwoStageAttention(dim, **heads)
        self.mlp = perceptron(dim)
        self.condition = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts: tuple[Tensor, ...] = (
            self.condition(condition).unsqueeze(1).chunk(6, dim=-1)
        )  # each [B, 1, C]
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attention(self.norm(x) * (1 + scale1) + shift1)
        transformed: Tensor = self.mlp(self.norm(x) * (1 + scale2) + shift2)
        return x + gate2 * transformed


class Decoder(nn.Module):
    """Predict the next token at every position of a prompt."""

    def __init__(self, dim: int, depth: int, vocab_size: int, **heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(DecoderLayer(dim, **heads) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits [B, S, vocabulary].

        Args:
            token_ids: [B, S].
            mask: [B, S]; False for padding.
        """
        seq_len = token_ids.shape[1]
        causal = torch.ones(seq_len, seq_len, dtype=torch.bool).tril()
        visible = causal & mask[:, None, None, :]  # [B, 1, S, S]
        x = self.embed(token_ids)
        for layer in self.layers:
            x = layer(x, visible)
        logits: Tensor = self.head(self.norm(x))
        return logits


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer with a gated perceptron."""

    def __init__(self, dim: int, **heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.attention = QueryNormAttention(dim, **heads)
        self.gate = nn.Linear(dim, 3 * dim, bias=False)
        self.up = nn.Linear(dim, 3 * dim, bias=False)
        self.down = nn.Linear(3 * dim, dim, bias=False)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), visible)
        y = self.norm2(x)
        transformed: Tensor = self.down(F.silu(self.gate(y)) * self.up(y))
        return x + transformed


class QueryNormAttention(nn.Module):
    """Attention with rotary positions in which each token uses the heads of its longest queries."""

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int, num_shared_heads: int, top_k: int
    ) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.groups = num_heads // num_kv_heads
        self.num_shared_heads, self.top_k = num_shared_heads, top_k
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (-1, self.head_dim))  # [B, S, H, D]
        key = self.key(x).unflatten(-1, (-1, self.head_dim))
        value = self.value(x).unflatten(-1, (-1, self.head_dim))
        heads = F.scaled_dot_product_attention(
            rotate(query).transpose(1, 2),
            rotate(key).transpose(1, 2).repeat_interleave(self.groups, dim=1),
            value.transpose(1, 2).repeat_interleave(self.groups, dim=1),
            attn_mask=visible,
        ).transpose(1, 2)  # [B, S, H, D]
        output: Tensor = self.proj((self._gates(query).unsqueeze(-1) * heads).flatten(2))
        return output

    def _gates(self, query: Tensor) -> Tensor:
        """Return 0 or 1 for each head [B, S, H] from the queries before they are rotated."""
        norms = query[:, :, self.num_shared_heads :].norm(dim=-1)  # [B, S, R]
        scores = (norms / norms.std(dim=-1, keepdim=True)).softmax(dim=-1)
        chosen = scores.topk(self.top_k, dim=-1).indices
        mask = F.one_hot(chosen, scores.shape[-1]).sum(dim=-2).to(query.dtype)
        shared = query.new_ones(*mask.shape[:2], self.num_shared_heads)
        return torch.cat([shared, mask], dim=-1)


def rotate(x: Tensor, first_position: int = 0) -> Tensor:
    """Return x [B, S, H, D] with rotary position embeddings."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half) / half)
    positions = torch.arange(first_position, first_position + x.shape[1])
    angles = positions[:, None, None] * frequencies  # [S, 1, D/2]
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

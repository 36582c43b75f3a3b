"""A small vision transformer with Mixture-of-Head attention, for 8x8 images of digits.

Source: Jin et al., MoH: Multi-Head Attention as Mixture-of-Head Attention (arXiv 2410.11842),
section 3: shared heads, two-stage routing, load-balancing loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CLASSES = 10
IMAGE_SIZE = 8
PATCH_SIZE = 2


class DigitsViT(nn.Module):
    """Classify images [B, 1, 8, 8] with values in [0, 1].

    Args:
        dim: Width of a token.
        depth: Number of transformer blocks.
        num_heads: Heads of each attention, shared and routed ones together.
        num_shared_heads: Heads that every token uses.
        top_k: Routed heads that each token chooses.
        dense: Every token uses all heads, unweighed, and there are no routers: what MoH has to
            be worth more than.
    """

    def __init__(
        self,
        dim: int = 64,
        depth: int = 3,
        num_heads: int = 8,
        num_shared_heads: int = 2,
        top_k: int = 3,
        dropout: float = 0.1,
        dense: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(1, dim // 2, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE),
        )
        self.position = nn.Parameter(0.02 * torch.randn((IMAGE_SIZE // PATCH_SIZE) ** 2, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                DenseAttention(dim, num_heads)
                if dense
                else MoHAttention(dim, num_heads, num_shared_heads, top_k),
                dropout,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 10]."""
        return self.logits_and_balance(images)[0]

    def logits_and_balance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, 10] and the load-balancing loss of all blocks, a scalar."""
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2) + self.position  # [B, 16, C]
        balance = images.new_zeros(())
        for block in self.blocks:
            tokens, block_balance = block(tokens)
            balance = balance + block_balance
        return self.head(self.norm(tokens).mean(dim=1)), balance


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron."""

    def __init__(self, dim: int, attention: MoHAttention | DenseAttention, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended, balance = self.attention(self.norm1(x))
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.norm2(x))), balance


class MoHAttention(nn.Module):
    """Attention whose heads are weighed, and some of them chosen, for each token."""

    def __init__(self, dim: int, num_heads: int, num_shared_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.router = TwoStageRouter(dim, num_heads, num_shared_heads, top_k)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, seq_len, dim = x.shape
        qkv = self.qkv(x).view(batch, seq_len, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, S, D]
        heads = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # [B, S, H, D]
        gates, balance = self.router(x)
        return self.proj((gates.unsqueeze(-1) * heads).flatten(2)), balance


class DenseAttention(nn.Module):
    """Attention whose heads all count for every token."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, seq_len, dim = x.shape
        qkv = self.qkv(x).view(batch, seq_len, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, S, D]
        heads = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # [B, S, H, D]
        return self.proj(heads.flatten(2)), x.new_zeros(())  # Without routers nothing to balance.


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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return gates [B, S, H], shared heads first, and the load-balancing loss."""
        shared = self.num_shared_heads * self.shared(x).softmax(dim=-1)
        routed, balance = self._route(x)
        to_shared, to_routed = (2 * self.stage(x).softmax(dim=-1)).split(1, dim=-1)
        return torch.cat([to_shared * shared, to_routed * routed], dim=-1), balance

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.routed(x).softmax(dim=-1)  # [B, S, R]
        chosen = scores.topk(self.top_k, dim=-1).indices
        mask = F.one_hot(chosen, self.num_routed_heads).sum(dim=-2)
        kept = scores * mask
        total = kept.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).eps)
        return self.top_k * kept / total, self._balance_loss(scores, mask)

    def _balance_loss(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Load-balancing loss, scaled so that even use of the routed heads gives `top_k`."""
        usage = mask.float().mean(dim=(0, 1))  # [R]
        return self.num_routed_heads * (usage * scores.mean(dim=(0, 1))).sum()

"""A decoder whose attention transposes to [B, H, S, D] first and normalises and rotates there."""

import torch
import torch.nn.functional as F
from models import Decoder, DecoderLayer, QueryNormAttention
from torch import Tensor, nn


def heads_first_decoder(*, dim: int, depth: int, vocab_size: int, **heads: int) -> nn.Module:
    """Build a decoder of the LLaMA form as many libraries write it, with query and key norms.

    Args:
        heads: `num_heads`, `num_kv_heads`, `num_shared_heads` and `top_k`.
    """
    decoder = Decoder(dim, 0, vocab_size, **heads)
    decoder.layers = nn.ModuleList(HeadsFirstLayer(dim, **heads) for _ in range(depth))
    return decoder


class HeadsFirstLayer(DecoderLayer):
    """A pre-norm layer of a decoder."""

    def __init__(self, dim: int, **heads: int) -> None:
        super().__init__(dim, **heads)
        self.attention = HeadsFirstAttention(dim, **heads)


class HeadsFirstAttention(QueryNormAttention):
    """Each token uses the heads of its longest queries, as they are before their norm."""

    def __init__(self, dim: int, **heads: int) -> None:
        super().__init__(dim, **heads)
        self.query_norm = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.key_norm = nn.RMSNorm(self.head_dim, eps=1e-6)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # each [B, H or Hkv, S, D]
        gates = self._gates(query.transpose(1, 2))
        query, key = rotate_half(self.query_norm(query)), rotate_half(self.key_norm(key))
        heads = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(self.groups, dim=1),
            value.repeat_interleave(self.groups, dim=1),
            attn_mask=visible,
        ).transpose(1, 2)  # [B, S, H, D]
        output: Tensor = self.proj((gates.unsqueeze(-1) * heads).flatten(2))
        return output


def rotate_half(x: Tensor) -> Tensor:
    """Return x [B, H, S, D] with rotary position embeddings."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half) / half)
    angles = (torch.arange(x.shape[2])[:, None] * frequencies).repeat(1, 2)  # [S, D]
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * angles.cos() + turned * angles.sin()

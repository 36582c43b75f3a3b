"""A decoder that gives and takes a key/value cache: a prompt, or a token behind what was seen."""

import torch
import torch.nn.functional as F
from models import Decoder, DecoderLayer, QueryNormAttention, rotate
from torch import Tensor, nn

Cache = tuple[Tensor, Tensor]


def cached_decoder(*, dim: int, depth: int, vocab_size: int, **heads: int) -> nn.Module:
    """Build a decoder of the LLaMA form whose tokens choose the heads of their longest queries.

    Args:
        heads: `num_heads`, `num_kv_heads`, `num_shared_heads` and `top_k`.
    """
    return CachedDecoder(dim, depth, vocab_size, **heads)


class CachedDecoder(Decoder):
    """Predict the next token at every new position."""

    def __init__(self, dim: int, depth: int, vocab_size: int, **heads: int) -> None:
        super().__init__(dim, 0, vocab_size, **heads)
        self.layers = nn.ModuleList(CachedLayer(dim, **heads) for _ in range(depth))

    def forward(  # type: ignore[override]  # A cache comes with the logits.
        self, token_ids: Tensor, mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Return logits [B, S, vocabulary], then keys and values of each layer [B, Hkv, T, D].

        Args:
            token_ids: New tokens, [B, S].
            mask: [B, T]; False for padding, cached tokens included.
            past: Keys and values of each layer in turn, [B, Hkv, T - S, D]; none at the start.
        """
        seq_len, kv_len = token_ids.shape[1], mask.shape[1]
        last_seen = torch.arange(kv_len - seq_len, kv_len)[:, None]  # [S, 1]
        visible = (torch.arange(kv_len) <= last_seen) & mask[:, None, None, :]  # [B, 1, S, T]
        caches = zip(past[::2], past[1::2], strict=True) if past else [None] * len(self.layers)
        x = self.embed(token_ids)
        present: list[Tensor] = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, *grown = layer(x, visible, cache)
            present += grown
        return self.head(self.norm(x)), *present


class CachedLayer(DecoderLayer):
    """Pre-norm decoder layer with a cache."""

    def __init__(self, dim: int, **heads: int) -> None:
        super().__init__(dim, **heads)
        self.attention = CachedAttention(dim, **heads)

    def forward(  # type: ignore[override]
        self, x: Tensor, visible: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, key, value = self.attention(self.norm1(x), visible, cache)
        x = x + attended
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), key, value


class CachedAttention(QueryNormAttention):
    """The same attention over cached and new tokens; cached keys are rotated already."""

    def forward(  # type: ignore[override]
        self, x: Tensor, visible: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head_dim))
            for layer in (self.query, self.key, self.value)
        )  # each [B, S, H or Hkv, D]
        past_len = 0 if cache is None else cache[0].shape[2]
        key, value = rotate(key, past_len).transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        heads = F.scaled_dot_product_attention(
            rotate(query, past_len).transpose(1, 2),
            key.repeat_interleave(self.groups, dim=1),
            value.repeat_interleave(self.groups, dim=1),
            attn_mask=visible,
        ).transpose(1, 2)  # [B, S, H, D]
        merged = (self._gates(query).unsqueeze(-1) * heads).flatten(2)
        return self.proj(merged), key, value

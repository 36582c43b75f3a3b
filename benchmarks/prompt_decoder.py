"""The decoder of the LLaMA form with its mask written as people write it."""

import torch
from models import Decoder, QueryNormAttention, rotate
from torch import Tensor, nn

MASKS = ("sdpa", "bool", "float")


def prompt_decoder(*, mask: str, dim: int, depth: int, vocab_size: int, **heads: int) -> nn.Module:
    """Build a decoder of prompts.

    Args:
        mask: `sdpa` gives a bool mask to scaled_dot_product_attention, `bool` fills scores behind
            one, `float` adds the least number to them, as the eager attention of transformers does.
        heads: `num_heads`, `num_kv_heads`, `num_shared_heads` and `top_k`.
    """
    model = Decoder(dim, depth, vocab_size, **heads)
    if mask != "sdpa":
        for layer in model.layers:
            layer.attention = ScoreAttention(dim, is_added=mask == "float", **heads)
    return model


class ScoreAttention(QueryNormAttention):
    """The same attention with its scores written out."""

    def __init__(self, dim: int, *, is_added: bool, **heads: int) -> None:
        super().__init__(dim, **heads)
        self.is_added = is_added

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (-1, self.head_dim))  # [B, S, H, D]
        key, value = (
            states.transpose(1, 2).repeat_interleave(self.groups, dim=1)
            for states in (
                rotate(self.key(x).unflatten(-1, (-1, self.head_dim))),
                self.value(x).unflatten(-1, (-1, self.head_dim)),
            )
        )  # each [B, H, S, D]
        scores = rotate(query).transpose(1, 2) @ key.transpose(2, 3) * self.head_dim**-0.5
        lowest = torch.finfo(scores.dtype).min
        if self.is_added:
            scores = scores + torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, lowest)
        else:
            scores = scores.masked_fill(~visible, lowest)
        heads = (scores.softmax(dim=-1) @ value).transpose(1, 2)  # [B, S, H, D]
        output: Tensor = self.proj((self._gates(query).unsqueeze(-1) * heads).flatten(2))
        return output

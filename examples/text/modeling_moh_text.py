"""A small decoder with Mixture-of-Head attention: the code that lies beside its weights.

It needs torch alone. Its forward is that of a language model as Hugging Face has it: tokens, a
mask over cache and tokens, positions, and a key and a value for each layer.

Source: Jin et al., MoH: Multi-Head Attention as Mixture-of-Head Attention (arXiv 2410.11842),
section 3: shared heads, two-stage routing, load-balancing loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""Of a layer, [B, kv_heads, tokens, head_dim]."""


class MoHTextForCausalLM(nn.Module):
    """Say which byte comes next.

    Args:
        config: An object with the keys of `config.json` as attributes.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
        angles = torch.outer(torch.arange(config.max_position_embeddings), 10000.0**-exponents)
        # Computed, and in no checkpoint: [positions, head_dim / 2].
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Sequence[KeyValue] | None = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, tuple[KeyValue, ...]] | tuple[Tensor]:
        """Return logits [B, S, vocab], and with `use_cache` the cache with these tokens added."""
        batch, seq = input_ids.shape
        before = past_key_values[0][0].shape[2] if past_key_values else 0
        places = torch.arange(before + seq)
        if attention_mask is None:
            attention_mask = torch.ones(batch, before + seq, dtype=torch.int64)
        if position_ids is None:
            position_ids = places[before:].expand(batch, -1)
        may_see = places[None, :] <= places[before:, None]  # [S, before + S]
        may_see = may_see & attention_mask.bool()[:, None, None, :]  # [B, 1, S, before + S]
        hidden = torch.finfo(self.head.weight.dtype).min
        mask = torch.where(may_see, 0.0, hidden).to(self.head.weight.dtype)
        cos, sin = self.cos[position_ids].unsqueeze(1), self.sin[position_ids].unsqueeze(1)
        x, present = self.embed(input_ids), []
        for layer, block in enumerate(self.blocks):
            past = past_key_values[layer] if past_key_values else None
            x, pair = block(x, cos.to(x.dtype), sin.to(x.dtype), mask, past)
            present.append(pair)
        logits = self.head(self.norm(x))
        return (logits, tuple(present)) if use_cache else (logits,)

    def balance(self) -> Tensor:
        """Return the load-balancing loss of the last forward in training, a scalar."""
        routers = [module for module in self.modules() if isinstance(module, TwoStageRouter)]
        return torch.stack([router.balance for router in routers]).sum()


class Block(nn.Module):
    """Pre-norm transformer block: MoH attention, then a gated perceptron."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.norm_1, self.norm_2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attention = MoHAttention(config)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        attended, present = self.attention(self.norm_1(x), cos, sin, mask, past)
        x = x + attended
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), present


class MoHAttention(nn.Module):
    """Attention whose heads are weighed, and some of them chosen, for each token."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        self.group = config.num_attention_heads // config.num_key_value_heads
        kv_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, width, bias=False)
        self.router = TwoStageRouter(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, H, S, D], [B, kv_heads, S, D] twice
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        heads = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(self.group, dim=1),
            value.repeat_interleave(self.group, dim=1),
            attn_mask=mask,
        ).transpose(1, 2)  # [B, S, H, D]
        gated = self.router(x).unsqueeze(-1) * heads
        return self.o_proj(gated.flatten(2)), (key, value)


class TwoStageRouter(nn.Module):
    """Weigh the shared heads, choose among the routed ones, and weigh the two kinds."""

    balance: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_shared, self.top_k = config.shared_heads, config.chosen_heads
        self.num_routed = config.num_attention_heads - self.num_shared
        self.shared = nn.Linear(config.hidden_size, self.num_shared, bias=False)
        self.routed = nn.Linear(config.hidden_size, self.num_routed, bias=False)
        self.stage = nn.Linear(config.hidden_size, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return gates [B, S, H], shared heads first."""
        scores = self.routed(x).softmax(dim=-1)  # [B, S, R]
        chosen = scores.topk(self.top_k, dim=-1).indices
        mask = F.one_hot(chosen, self.num_routed).sum(dim=-2)
        if self.training:  # so that even use of the routed heads gives `top_k`
            usage = mask.to(scores.dtype).mean(dim=(0, 1))  # [R]
            self.balance = self.num_routed * (usage * scores.mean(dim=(0, 1))).sum()
        kept = scores * mask
        total = kept.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).eps)
        shared = self.num_shared * self.shared(x).softmax(dim=-1)
        to_shared, to_routed = (2 * self.stage(x).softmax(dim=-1)).split(1, dim=-1)
        return torch.cat([to_shared * shared, to_routed * self.top_k * kept / total], dim=-1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn [B, heads, S, D] by angles [B, 1, S, D / 2], pairs half a head apart."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

"""A small decoder with routed heads, in torch alone: code that lies beside its weights."""

import torch
import torch.nn.functional as F
from torch import nn

from .sizes import SmallConfig


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotated(x, cos, sin):
    """Turn [batch, heads, seq, head_dim] by angles [batch, seq, head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)


class Attention(nn.Module):
    """The first head runs for all tokens; of the others each token takes the best ones."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.chosen = config.head_dim, config.routed_heads
        width = config.hidden_size
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.router = nn.Linear(width, self.heads - 1, bias=False)

    def gates(self, x):
        scores = self.router(x).softmax(-1)
        best, where = scores.topk(self.chosen, dim=-1)
        routed = torch.zeros_like(scores).scatter(-1, where, best)
        return torch.cat((torch.ones_like(routed[..., :1]), routed), dim=-1)

    def forward(self, x, cos, sin, mask, past):
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        group = self.heads // self.kv_heads
        y = F.scaled_dot_product_attention(
            q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), attn_mask=mask
        )
        y = y.transpose(1, 2) * self.gates(x).unsqueeze(-1)
        return self.o_proj(y.flatten(2)), (k, v)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_1, self.norm_2 = Norm(config.hidden_size), Norm(config.hidden_size)
        self.attention = Attention(config)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, mask, past):
        y, present = self.attention(self.norm_1(x), cos, sin, mask, past)
        x = x + y
        return x + self.down(F.silu(self.up(self.norm_2(x)))), present


class SmallForCausalLM(nn.Module):
    config_class = SmallConfig

    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.head.weight = self.embed.weight
        inverse = 10000.0 ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.outer(torch.arange(config.max_position_embeddings), inverse)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=False,
    ):
        x = self.embed(input_ids)
        before = past_key_values[0][0].shape[2] if past_key_values else 0
        total = before + input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(input_ids.shape[0], total, dtype=torch.int64)
        if position_ids is None:
            position_ids = torch.arange(before, total).expand(input_ids.shape[0], -1)
        places = torch.arange(total)
        seen = places[None, :] <= places[before:, None]  # [seq, total]
        seen = seen[None, None] & attention_mask.bool()[:, None, None, :]
        mask = torch.where(seen, 0.0, torch.finfo(x.dtype).min).to(x.dtype)
        cos, sin = self.cos[position_ids].to(x.dtype), self.sin[position_ids].to(x.dtype)
        present = []
        for index, block in enumerate(self.blocks):
            past = past_key_values[index] if past_key_values else None
            x, pair = block(x, cos, sin, mask, past)
            present.append(pair)
        logits = self.head(self.norm(x))
        return (logits, tuple(present)) if use_cache else (logits,)

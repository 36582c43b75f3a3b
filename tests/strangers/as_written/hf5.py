"""transformers 5 style: ALL_ATTENTION_FUNCTIONS / attention_interface, Qwen3-like (GQA, q_norm, rope), ids and mask, dict output; sdpa in layer 0, eager in layer 1."""
import torch, torch.nn.functional as F
from dataclasses import dataclass
from typing import Callable
from torch import nn


@dataclass
class Config:
    hidden_size: int = 48
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 8
    num_hidden_layers: int = 2
    num_heads_per_tok: int = 3
    vocab_size: int = 64


def rotate_half(x):
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def repeat_kv(h, n_rep):
    b, kv, s, d = h.shape
    return h[:, :, None].expand(b, kv, n_rep, s, d).reshape(b, kv * n_rep, s, d)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = F.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = F.dropout(attn_weights, p=dropout, training=module.training)
    return torch.matmul(attn_weights, value).transpose(1, 2).contiguous(), attn_weights


def sdpa_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS: dict[str, Callable] = {"sdpa": sdpa_attention_forward, "eager": eager_attention_forward}


class MoHAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling, self.attention_dropout = self.head_dim**-0.5, 0.0
        self.attn_implementation = "sdpa" if layer_idx == 0 else "eager"
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim)
        self.router = nn.Linear(config.hidden_size, config.num_attention_heads, bias=False)

    def forward(self, hidden_states, position_embeddings, attention_mask, **kwargs):
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_norm(self.q_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
        key_states = self.k_norm(self.k_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        cos, sin = (t.unsqueeze(1) for t in position_embeddings)
        query_states = query_states * cos + rotate_half(query_states) * sin
        key_states = key_states * cos + rotate_half(key_states) * sin
        attention_interface = ALL_ATTENTION_FUNCTIONS.get(self.attn_implementation, eager_attention_forward)
        attn_output, attn_weights = attention_interface(self, query_states, key_states, value_states, attention_mask, dropout=0.0 if not self.training else self.attention_dropout, scaling=self.scaling, **kwargs)
        routing = F.softmax(self.router(hidden_states), dim=-1, dtype=torch.float)
        w, sel = torch.topk(routing, self.config.num_heads_per_tok, dim=-1)
        w = (w / w.sum(-1, keepdim=True)).to(hidden_states.dtype) * self.config.num_heads_per_tok
        gates = torch.zeros_like(routing, dtype=hidden_states.dtype).scatter(-1, sel, w)
        attn_output = attn_output * gates[..., None]
        return self.o_proj(attn_output.reshape(*input_shape, -1)), attn_weights


class Layer(nn.Module):
    def __init__(self, config, i):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(config.hidden_size), nn.RMSNorm(config.hidden_size)
        self.self_attn = MoHAttention(config, i)
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(48, 96, bias=False), nn.Linear(48, 96, bias=False), nn.Linear(96, 48, bias=False)

    def forward(self, hidden_states, **kw):
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kw)[0]
        h = self.post_attention_layernorm(hidden_states)
        return hidden_states + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class ForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, i) for i in range(config.num_hidden_layers)])
        self.norm, self.lm_head = nn.RMSNorm(config.hidden_size), nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, input_ids, attention_mask):
        x = self.embed_tokens(input_ids)
        n = input_ids.shape[1]
        pos = torch.arange(n, device=x.device)[None]
        inv = 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8))
        f = pos[..., None].float() * inv
        emb = torch.cat((f, f), -1)
        causal = (torch.arange(n)[:, None] >= torch.arange(n)[None])[None, None] & attention_mask[:, None, None].bool()
        mask = torch.where(causal, torch.tensor(0.0), torch.tensor(torch.finfo(x.dtype).min))
        for l in self.layers:
            x = l(x, position_embeddings=(emb.cos(), emb.sin()), attention_mask=mask)
        return {"logits": self.lm_head(self.norm(x)), "last_hidden_state": x}


def build():
    torch.manual_seed(11)
    m = ForCausalLM(Config())
    for l in m.layers:
        nn.init.normal_(l.self_attn.router.weight, std=0.4)
    return m.eval()


SIZES = dict(batch=2, seq=8)
VALID = "attention_mask"


def inputs(batch=2, seq=8):
    mask = (torch.arange(seq)[None] < torch.randint(2, seq + 1, (batch, 1))).long()
    return dict(input_ids=torch.randint(0, 64, (batch, seq)), attention_mask=mask)


DYNAMIC = {k: {0: "batch", 1: "seq"} for k in ("input_ids", "attention_mask")}
TRUTH = dict(gated=2, sparse=2, notes="Qwen3-like, one layer sdpa with enable_gqa, one eager; Mixtral-like gates")

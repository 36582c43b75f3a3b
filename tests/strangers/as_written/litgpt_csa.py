import math, torch
from dataclasses import dataclass
from torch import nn


@dataclass
class Config:
    n_embd: int = 32
    n_head: int = 4
    n_query_groups: int = 2
    head_size: int = 12
    rotary_percentage: float = 0.5
    n_layer: int = 2
    block_size: int = 32
    vocab: int = 40
    n_active: int = 2

    @property
    def rope_n_elem(self): return int(self.rotary_percentage * self.head_size)


def build_rope_cache(seq_len, n_elem, base=10000):
    theta = 1.0 / (base ** (torch.arange(0, n_elem, 2).float() / n_elem))
    idx_theta = torch.outer(torch.arange(seq_len), theta).repeat(1, 2)
    return torch.cos(idx_theta), torch.sin(idx_theta)


def apply_rope(x, cos, sin):
    head_size_half = x.size(-1) // 2
    x1, x2 = x[..., :head_size_half], x[..., head_size_half:]
    rotated = torch.cat((-x2, x1), dim=-1)
    return ((x * cos) + (rotated * sin)).to(dtype=x.dtype)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn = nn.Linear(config.n_embd, (config.n_head + 2 * config.n_query_groups) * config.head_size, bias=True)
        self.proj = nn.Linear(config.head_size * config.n_head, config.n_embd, bias=True)
        self.gate = nn.Linear(config.n_embd, config.n_head)
        self.config = config

    def forward(self, x, cos, sin, mask=None):
        cfg = self.config
        B, T, C = x.size()
        qkv = self.attn(x)
        q_per_kv = cfg.n_head // cfg.n_query_groups
        qkv = qkv.view(B, T, cfg.n_query_groups, q_per_kv + 2, cfg.head_size).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((q_per_kv, 1, 1), dim=2)
        if cfg.n_query_groups != cfg.n_head:
            k = k.expand(B, cfg.n_query_groups, q_per_kv, T, cfg.head_size)
            v = v.expand(B, cfg.n_query_groups, q_per_kv, T, cfg.head_size)
        q = q.reshape(B, -1, T, cfg.head_size)
        k = k.reshape(B, -1, T, cfg.head_size)
        v = v.reshape(B, -1, T, cfg.head_size)
        q_roped = apply_rope(q[..., : cfg.rope_n_elem], cos, sin)
        k_roped = apply_rope(k[..., : cfg.rope_n_elem], cos, sin)
        q = torch.cat((q_roped, q[..., cfg.rope_n_elem :]), dim=-1)
        k = torch.cat((k_roped, k[..., cfg.rope_n_elem :]), dim=-1)
        y = self.scaled_dot_product_attention(q, k, v, mask)
        s = self.gate(x).sigmoid()
        val, ind = torch.topk(s, cfg.n_active, dim=-1, sorted=False)
        val = val / (val.sum(dim=-1, keepdim=True) + 1e-9)
        g = torch.zeros_like(s).scatter(-1, ind, val)
        y = (y * g[..., None]).reshape(B, T, cfg.head_size * cfg.n_head)
        return self.proj(y)

    def scaled_dot_product_attention(self, q, k, v, mask=None):
        scale = 1.0 / math.sqrt(self.config.head_size)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0, scale=scale, is_causal=mask is None)
        return y.transpose(1, 2)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm_1, self.attn = nn.LayerNorm(c.n_embd), CausalSelfAttention(c)
        self.fc, self.pr = nn.Linear(c.n_embd, 4 * c.n_embd), nn.Linear(4 * c.n_embd, c.n_embd)

    def forward(self, x, cos, sin):  # parallel residual, shared norm
        h = self.norm_1(x)
        return self.pr(torch.nn.functional.gelu(self.fc(h))) + self.attn(h, cos, sin) + x


class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.lm_head = nn.Linear(c.n_embd, c.vocab, bias=False)
        self.transformer = nn.ModuleDict(dict(wte=nn.Embedding(c.vocab, c.n_embd), h=nn.ModuleList(Block(c) for _ in range(c.n_layer)), ln_f=nn.LayerNorm(c.n_embd)))
        cos, sin = build_rope_cache(c.block_size, c.rope_n_elem)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, idx):
        T = idx.size(1)
        cos, sin = self.cos[:T], self.sin[:T]
        x = self.transformer.wte(idx)
        for block in self.transformer.h:
            x = block(x, cos, sin)
        return self.lm_head(self.transformer.ln_f(x))


def build():
    torch.manual_seed(2)
    m = GPT(Config()).eval()
    with torch.no_grad():
        for b in m.transformer.h: b.attn.gate.weight.mul_(6)
    return m

SIZES = dict(batch=2, n=10)
def inputs(batch=2, n=10): return dict(idx=torch.randint(0, 40, (batch, n)))
DYNAMIC = dict(idx={0: "batch", 1: "n"})
TRUTH = dict(gated=2, sparse=2, notes="litgpt: grouped packed qkv, partial rope, sigmoid top-k over sum + eps, unsorted; parallel residual")

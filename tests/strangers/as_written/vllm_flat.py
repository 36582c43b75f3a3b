import torch
from torch import nn


class QKVParallelLinear(nn.Linear):
    pass


class Attention(nn.Module):
    """Plain torch in place of the paged backend: sequences lie behind each other."""
    def __init__(self, num_heads, head_size, scale, num_kv_heads):
        super().__init__()
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, scale, num_kv_heads

    def forward(self, query, key, value, seq_ids, positions):
        q = query.view(-1, self.num_heads, self.head_size)
        k = key.view(-1, self.num_kv_heads, self.head_size)
        v = value.view(-1, self.num_kv_heads, self.head_size)
        if self.num_kv_heads != self.num_heads:
            k = torch.repeat_interleave(k, self.num_heads // self.num_kv_heads, dim=1)
            v = torch.repeat_interleave(v, self.num_heads // self.num_kv_heads, dim=1)
        attn_weights = self.scale * torch.einsum("qhd,khd->hqk", q, k).float()
        same = seq_ids[:, None] == seq_ids[None, :]
        mask = same & (positions[None, :] <= positions[:, None])
        attn_weights = attn_weights.masked_fill(~mask.unsqueeze(0), torch.finfo(torch.float32).min)
        attn_weights = torch.softmax(attn_weights, dim=-1).to(v.dtype)
        return torch.einsum("hqk,khd->qhd", attn_weights, v).reshape(-1, self.num_heads * self.head_size)


class MoHAttention(nn.Module):
    def __init__(self, hidden_size, num_heads, num_kv_heads, head_dim, top_k):
        super().__init__()
        self.num_heads, self.head_dim, self.top_k = num_heads, head_dim, top_k
        self.q_size, self.kv_size = num_heads * head_dim, num_kv_heads * head_dim
        self.qkv_proj = QKVParallelLinear(hidden_size, self.q_size + 2 * self.kv_size, bias=True)
        self.o_proj = nn.Linear(self.q_size, hidden_size, bias=False)
        self.head_gate = nn.Linear(hidden_size, num_heads, bias=False)
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, head_dim, 2).float() / head_dim)), persistent=False)
        self.attn = Attention(num_heads, head_dim, head_dim**-0.5, num_kv_heads)

    def rotary_emb(self, positions, query, key):
        freqs = torch.einsum("i,j->ij", positions.float(), self.inv_freq)
        cos, sin = freqs.cos().unsqueeze(-2), freqs.sin().unsqueeze(-2)

        def rot(x):
            shape = x.shape
            x = x.view(shape[0], -1, self.head_dim)
            x1, x2 = torch.chunk(x, 2, dim=-1)
            return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).reshape(shape)
        return rot(query), rot(key)

    def forward(self, positions, hidden_states, seq_ids):
        qkv = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        attn_output = self.attn(q, k, v, seq_ids, positions)
        router_logits = self.head_gate(hidden_states)
        topk_weights, topk_ids = torch.topk(torch.softmax(router_logits, dim=-1, dtype=torch.float32), self.top_k, dim=-1)
        topk_weights = topk_weights / topk_weights.sum(dim=-1, keepdim=True)
        head_w = torch.zeros_like(router_logits).scatter_(1, topk_ids, topk_weights.to(router_logits.dtype))
        attn_output = attn_output.view(-1, self.num_heads, self.head_dim) * head_w.unsqueeze(-1)
        return self.o_proj(attn_output.view(-1, self.q_size))


class RMSNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x, residual=None):
        if residual is not None:
            x = x + residual
            residual = x
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return y if residual is None else (y, residual)


class DecoderLayer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.self_attn = MoHAttention(d, 8, 2, 8, 3)
        self.gate_up_proj, self.down_proj = nn.Linear(d, 96, bias=False), nn.Linear(48, d, bias=False)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(d), RMSNorm(d)

    def forward(self, positions, hidden_states, residual, seq_ids):
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states, seq_ids)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        x = self.gate_up_proj(hidden_states)
        d = x.shape[-1] // 2
        return self.down_proj(nn.functional.silu(x[..., :d]) * x[..., d:]), residual


class Model(nn.Module):
    def __init__(self, d=48):
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(70, d), RMSNorm(d)
        self.layers = nn.ModuleList([DecoderLayer(d) for _ in range(2)])

    def forward(self, input_ids, positions, seq_ids):
        hidden_states, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual, seq_ids)
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states


def build():
    torch.manual_seed(4)
    m = Model().eval()
    with torch.no_grad():
        for l in m.layers: l.self_attn.head_gate.weight.mul_(6)
    return m

SIZES = dict(tokens=14)
def inputs(tokens=14):
    a = tokens // 3
    pos = torch.cat([torch.arange(a), torch.arange(tokens - a)])
    return dict(input_ids=torch.randint(0, 70, (tokens,)), positions=pos, seq_ids=torch.cat([torch.zeros(a), torch.ones(tokens - a)]).int())
DYNAMIC = dict(input_ids={0: "tokens"}, positions={0: "tokens"}, seq_ids={0: "tokens"})
TRUTH = dict(gated=2, sparse=2, notes="vLLM: no batch axis, flattened tokens, qkv split by sizes, renormalised top-k, fused add-norm")

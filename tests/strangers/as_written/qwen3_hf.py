import torch
from torch import nn


class Qwen3RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(hidden_size)), eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon)).to(input_dtype)


def rotate_half(x):
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def repeat_kv(hidden_states, n_rep):
    batch, num_key_value_heads, slen, head_dim = hidden_states.shape
    if n_rep == 1: return hidden_states
    hidden_states = hidden_states[:, :, None, :, :].expand(batch, num_key_value_heads, n_rep, slen, head_dim)
    return hidden_states.reshape(batch, num_key_value_heads * n_rep, slen, head_dim)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    key_states, value_states = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    attn_weights = torch.matmul(query, key_states.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask[:, :, :, : key_states.shape[-2]]
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    return torch.matmul(attn_weights, value_states).transpose(1, 2).contiguous(), attn_weights


class Qwen3Attention(nn.Module):
    """Qwen's gated attention: the headwise gate lies behind the queries of its group in q_proj's output."""
    def __init__(self, hidden_size, heads, kv, head_dim, sparse):
        super().__init__()
        self.num_heads, self.num_kv, self.head_dim, self.sparse = heads, kv, head_dim, sparse
        self.num_key_value_groups, self.scaling = heads // kv, head_dim**-0.5
        self.q_proj = nn.Linear(hidden_size, heads * head_dim + heads, bias=False)
        self.k_proj, self.v_proj = nn.Linear(hidden_size, kv * head_dim, bias=False), nn.Linear(hidden_size, kv * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=False)
        self.q_norm, self.k_norm = Qwen3RMSNorm(head_dim), Qwen3RMSNorm(head_dim)

    def forward(self, hidden_states, position_embeddings, attention_mask):
        bsz, q_len, _ = hidden_states.shape
        query_states = self.q_proj(hidden_states)
        query_states = query_states.view(bsz, q_len, self.num_kv, -1)
        query_states, gate_score = torch.split(query_states, [self.head_dim * self.num_key_value_groups, self.num_key_value_groups], dim=-1)
        gate_score = gate_score.reshape(bsz, q_len, -1, 1)
        query_states = query_states.reshape(bsz, q_len, -1, self.head_dim)
        query_states = self.q_norm(query_states).transpose(1, 2)
        key_states = self.k_norm(self.k_proj(hidden_states).view(bsz, q_len, -1, self.head_dim)).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(bsz, q_len, -1, self.head_dim).transpose(1, 2)
        cos, sin = position_embeddings
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        query_states = (query_states * cos) + (rotate_half(query_states) * sin)
        key_states = (key_states * cos) + (rotate_half(key_states) * sin)
        attn_output, _ = eager_attention_forward(self, query_states, key_states, value_states, attention_mask, self.scaling)
        gate = torch.sigmoid(gate_score)
        if self.sparse:
            gate = gate * (gate > 0.4).to(gate.dtype)
        attn_output = attn_output * gate
        return self.o_proj(attn_output.reshape(bsz, q_len, -1).contiguous())


class Layer(nn.Module):
    def __init__(self, d, sparse):
        super().__init__()
        self.self_attn = Qwen3Attention(d, 6, 2, 8, sparse)
        self.input_layernorm, self.post_attention_layernorm = Qwen3RMSNorm(d), Qwen3RMSNorm(d)
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(d, 80, bias=False), nn.Linear(d, 80, bias=False), nn.Linear(80, d, bias=False)

    def forward(self, h, pe, mask):
        h = h + self.self_attn(self.input_layernorm(h), pe, mask)
        z = self.post_attention_layernorm(h)
        return h + self.down_proj(nn.functional.silu(self.gate_proj(z)) * self.up_proj(z))


class Qwen3Model(nn.Module):
    def __init__(self, d=40):
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(60, d), Qwen3RMSNorm(d)
        self.layers = nn.ModuleList([Layer(d, False), Layer(d, True)])
        self.register_buffer("inv_freq", 1.0 / (1e6 ** (torch.arange(0, 8, 2).float() / 8)), persistent=False)

    def forward(self, input_ids, attention_mask):
        h = self.embed_tokens(input_ids)
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        inv = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
        freqs = (inv @ position_ids[:, None, :].float()).transpose(1, 2)
        emb = torch.cat((freqs, freqs), dim=-1)
        n = input_ids.shape[1]
        min_dtype = torch.finfo(h.dtype).min
        causal = torch.full((n, n), min_dtype).triu(1)[None, None].expand(input_ids.shape[0], 1, -1, -1)
        pad = attention_mask[:, None, None, :] == 0
        mask = causal.masked_fill(pad, min_dtype)
        for l in self.layers: h = l(h, (emb.cos(), emb.sin()), mask)
        return {"last_hidden_state": self.norm(h)}


def build():
    torch.manual_seed(8)
    m = Qwen3Model().eval()
    with torch.no_grad():
        for l in m.layers:
            w = l.self_attn.q_proj.weight.view(2, 3 * 8 + 3, -1)
            w[:, 24:].mul_(5)
    return m

SIZES = dict(batch=3, n=9)
def inputs(batch=3, n=9):
    mask = torch.ones(batch, n, dtype=torch.long)
    mask[0, :2] = 0
    return dict(input_ids=torch.randint(0, 60, (batch, n)), attention_mask=mask)
DYNAMIC = dict(input_ids={0: "batch", 1: "n"}, attention_mask={0: "batch", 1: "n"})
VALID = "attention_mask"
TRUTH = dict(gated=2, sparse=1, notes="Qwen gated attention: headwise gates packed into q_proj per group; first dense sigmoid (nothing to skip), second hard threshold; left padding")

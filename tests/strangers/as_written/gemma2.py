import torch
from torch import nn
import torch.nn.functional as F


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6, add_unit_offset=True):
        super().__init__()
        self.eps, self.add_unit_offset, self.weight = eps, add_unit_offset, nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        out = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (out * (1 + self.weight.float())).type_as(x)


class GemmaAttention(nn.Module):
    def __init__(self, hidden, heads, kv, head_dim, attn_type, cap):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim, self.attn_type, self.cap = heads, kv, head_dim, attn_type, cap
        self.num_queries_per_kv = heads // kv
        self.q_size, self.kv_size = heads * head_dim, kv * head_dim
        self.scaling = 12**-0.5
        self.qkv_proj = nn.Linear(hidden, self.q_size + 2 * self.kv_size, bias=False)
        self.o_proj = nn.Linear(self.q_size, hidden, bias=False)
        self.router = nn.Linear(hidden, heads, bias=False)
        self.sliding_window_size = 4

    def forward(self, hidden_states, freqs, mask):
        b, n, _ = hidden_states.shape
        xq, xk, xv = self.qkv_proj(hidden_states).split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        xq = xq.view(b, -1, self.num_heads, self.head_dim)
        xk = xk.view(b, -1, self.num_kv_heads, self.head_dim)
        xv = xv.view(b, -1, self.num_kv_heads, self.head_dim)
        cos, sin = freqs

        def rope(x):
            a, c = x.chunk(2, -1)
            return torch.cat([a * cos - c * sin, a * sin + c * cos], -1)
        xq, xk = rope(xq), rope(xk)
        key = torch.repeat_interleave(xk, self.num_queries_per_kv, dim=2).transpose(1, 2)
        value = torch.repeat_interleave(xv, self.num_queries_per_kv, dim=2).transpose(1, 2)
        q = xq.transpose(1, 2)
        q = q * self.scaling
        scores = torch.matmul(q, key.transpose(2, 3))
        if self.attn_type == "local":
            all_ones = torch.ones_like(mask)
            sliding_mask = torch.triu(all_ones, -1 * self.sliding_window_size + 1) * torch.tril(all_ones, self.sliding_window_size - 1)
            mask = torch.where(sliding_mask == 1, mask, -2.3819763e38)
        if self.cap is not None:
            scores = scores / self.cap
            scores = torch.tanh(scores)
            scores = scores * self.cap
        scores = scores + mask
        scores = F.softmax(scores.float(), dim=-1).type_as(q)
        output = torch.matmul(scores, value)
        logits = self.router(hidden_states)
        kth = logits.topk(2, dim=-1).values[..., -1:]
        g = torch.where(logits >= kth, logits, float("-inf")).softmax(-1)
        output = output * g.transpose(1, 2).unsqueeze(-1)
        output = output.transpose(1, 2).contiguous().view(b, n, -1)
        return self.o_proj(output)


class Layer(nn.Module):
    def __init__(self, d, kind, cap):
        super().__init__()
        self.self_attn = GemmaAttention(d, 4, 2, 12, kind, cap)
        self.n1, self.n2, self.n3, self.n4 = (RMSNorm(d) for _ in range(4))
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(d, 64), nn.Linear(d, 64), nn.Linear(64, d)

    def forward(self, x, freqs, mask):
        r = x
        x = r + self.n2(self.self_attn(self.n1(x), freqs, mask))
        r = x
        h = self.n3(x)
        return r + self.n4(self.down_proj(F.gelu(self.gate_proj(h), approximate="tanh") * self.up_proj(h)))


class Gemma(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.embedder = nn.Embedding(50, d)
        # the third layer is Gemma 3's: no cap
        self.layers = nn.ModuleList([Layer(d, "local", 50.0), Layer(d, "global", 50.0), Layer(d, "global", None)])
        self.norm, self.d = RMSNorm(d), d
        fr = torch.outer(torch.arange(64).float(), 1.0 / (10000 ** (torch.arange(0, 12, 2).float() / 12)))
        self.register_buffer("cos", fr.cos(), persistent=False)
        self.register_buffer("sin", fr.sin(), persistent=False)

    def forward(self, input_token_ids, input_positions):
        n = input_token_ids.shape[1]
        freqs = self.cos.index_select(0, input_positions)[None, :, None], self.sin.index_select(0, input_positions)[None, :, None]
        mask = torch.triu(torch.full((1, 1, n, n), -2.3819763e38), diagonal=1)
        h = self.embedder(input_token_ids) * (self.d**0.5)
        for l in self.layers: h = l(h, freqs, mask)
        h = self.norm(h)
        logits = h @ self.embedder.weight.t()
        return torch.tanh(logits / 30.0) * 30.0


def build():
    torch.manual_seed(7)
    m = Gemma().eval()
    with torch.no_grad():
        for l in m.layers: l.self_attn.router.weight.mul_(5)
        for n, p in m.named_parameters():
            if p.ndim == 1 and n.split(".")[-2].startswith("n"): p.normal_(0, 0.1)
    return m

SIZES = dict(batch=2, n=9)
def inputs(batch=2, n=9): return dict(input_token_ids=torch.randint(0, 50, (batch, n)), input_positions=torch.arange(n))
DYNAMIC = dict(input_token_ids={0: "batch", 1: "n"}, input_positions={0: "n"})
TRUTH = dict(gated=3, sparse=3, notes="gemma_pytorch: soft cap in two layers (documented as ordinary operators: sparse 1 is within the docs), threshold at kth logit, softmax of the kept")

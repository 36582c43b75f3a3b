import math, torch
from torch import nn


def sdpa(Q, K, V, S, sm_scale, sliding_window=0):
    n_tokens, n_heads, q_mult, d_head = Q.shape
    K = K[:, :, None, :].expand(-1, -1, q_mult, -1)
    V = V[:, :, None, :].expand(-1, -1, q_mult, -1)
    S = S.reshape(n_heads, q_mult, 1, 1).expand(-1, -1, n_tokens, -1)
    mask = torch.triu(Q.new_full((n_tokens, n_tokens), -float("inf")), diagonal=1)
    if sliding_window > 0:
        mask += torch.tril(mask.new_full((n_tokens, n_tokens), -float("inf")), diagonal=-sliding_window)
    QK = torch.einsum("qhmd,khmd->hmqk", Q, K)
    QK *= sm_scale
    QK += mask[None, None, :, :]
    QK = torch.cat([QK, S], dim=-1)
    W = torch.softmax(QK, dim=-1)
    W = W[..., :-1]
    return torch.einsum("hmqk,khmd->qhmd", W, V)


class AttentionBlock(nn.Module):
    def __init__(self, hidden, heads, kv, head_dim, layer_idx, active):
        super().__init__()
        self.head_dim, self.heads, self.kv, self.active = head_dim, heads, kv, active
        self.sliding_window = 5 if layer_idx % 2 == 0 else 0
        self.sinks = nn.Parameter(torch.randn(heads))
        self.norm = nn.RMSNorm(hidden)
        self.qkv = nn.Linear(hidden, head_dim * (heads + 2 * kv))
        self.out = nn.Linear(head_dim * heads, hidden)
        self.gate = nn.Linear(hidden, heads)
        self.sm_scale = 1 / math.sqrt(head_dim)
        inv = 1.0 / (10000 ** (torch.arange(0, head_dim, 2).float() / head_dim))
        self.register_buffer("inv", inv, persistent=False)

    def rope(self, x):
        fr = torch.outer(torch.arange(x.shape[0]).float(), self.inv)
        cos, sin = fr.cos().unsqueeze(-2), fr.sin().unsqueeze(-2)
        shape = x.shape
        x = x.view(shape[0], -1, self.head_dim)
        x1, x2 = torch.chunk(x, 2, dim=-1)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).reshape(shape)

    def forward(self, x):
        t = self.norm(x)
        qkv = self.qkv(t)
        q = qkv[:, : self.heads * self.head_dim].contiguous()
        k = qkv[:, self.heads * self.head_dim : (self.heads + self.kv) * self.head_dim].contiguous()
        v = qkv[:, (self.heads + self.kv) * self.head_dim :].contiguous()
        q = self.rope(q).view(-1, self.kv, self.heads // self.kv, self.head_dim)
        k = self.rope(k).view(-1, self.kv, self.head_dim)
        v = v.view(-1, self.kv, self.head_dim)
        o = sdpa(q, k, v, self.sinks, self.sm_scale, self.sliding_window)
        g = self.gate(t)
        experts = torch.topk(g, k=self.active, dim=-1, sorted=True)
        w = torch.nn.functional.softmax(experts.values, dim=1)
        gates = torch.zeros_like(g).scatter(1, experts.indices, w)
        o = o * gates.view(-1, self.kv, self.heads // self.kv, 1)
        return x + self.out(o.reshape(-1, self.heads * self.head_dim))


class Transformer(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.embedding = nn.Embedding(60, d)
        self.block = nn.ModuleList([AttentionBlock(d, 8, 2, 8, i, 3) for i in range(2)])
        self.norm, self.unembedding = nn.RMSNorm(d), nn.Linear(d, 60, bias=False)

    def forward(self, x):
        x = self.embedding(x)
        for b in self.block: x = b(x)
        return self.unembedding(self.norm(x))


def build():
    torch.manual_seed(9)
    m = Transformer().eval()
    with torch.no_grad():
        for b in m.block: b.gate.weight.mul_(6)
    return m

SIZES = dict(tokens=12)
def inputs(tokens=12): return dict(x=torch.randint(0, 60, (tokens,)))
DYNAMIC = dict(x={0: "tokens"})
TRUTH = dict(gated=2, sparse=2, notes="gpt-oss reference: sinks in softmax (documented as ordinary: sparse 0 within the docs), no batch axis, five-axes GQA, softmax of chosen")

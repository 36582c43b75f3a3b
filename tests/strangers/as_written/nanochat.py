import torch
from torch import nn
import torch.nn.functional as F


def norm(x): return F.rms_norm(x, (x.size(-1),))

def apply_rotary_emb(x, cos, sin):
    d = x.shape[3] // 2
    x1, x2 = x[..., :d], x[..., d:]
    return torch.cat([x1 * cos + x2 * sin, x1 * (-sin) + x2 * cos], 3)


class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd, n_head, n_kv_head, layer_idx):
        super().__init__()
        self.layer_idx, self.n_head, self.n_kv_head, self.head_dim = layer_idx, n_head, n_kv_head, n_embd // n_head
        self.c_q = nn.Linear(n_embd, n_head * self.head_dim, bias=False)
        self.c_k = nn.Linear(n_embd, n_kv_head * self.head_dim, bias=False)
        self.c_v = nn.Linear(n_embd, n_kv_head * self.head_dim, bias=False)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.gate_channels = 12
        self.attn_gate = nn.Linear(self.gate_channels, n_head, bias=False)

    def forward(self, x, cos_sin):
        B, T, C = x.size()
        q = self.c_q(x).view(B, T, self.n_head, self.head_dim)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)
        cos, sin = cos_sin
        q, k = apply_rotary_emb(q, cos, sin), apply_rotary_emb(k, cos, sin)
        q, k = norm(q), norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.n_head != self.n_kv_head)
        y = y.transpose(1, 2)
        # sparse gated attention: small linear on the first channels, closed below 0.5
        g = torch.sigmoid(self.attn_gate(x[..., : self.gate_channels]))
        g = torch.where(g > 0.5, g, 0.0)
        y = y * g.unsqueeze(-1)
        return self.c_proj(y.contiguous().view(B, T, -1))


class Block(nn.Module):
    def __init__(self, d, i):
        super().__init__()
        self.attn = CausalSelfAttention(d, 6, 3, i)
        self.c_fc, self.c_proj = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x, cos_sin):
        x = x + self.attn(norm(x), cos_sin)
        return x + self.c_proj(F.relu(self.c_fc(norm(x))).square())


class GPT(nn.Module):
    def __init__(self, d=48, vocab=60):
        super().__init__()
        self.wte, self.h, self.lm_head = nn.Embedding(vocab, d), nn.ModuleList([Block(d, i) for i in range(3)]), nn.Linear(d, vocab, bias=False)
        t, inv = torch.arange(64).float(), 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8))
        freqs = torch.outer(t, inv)
        self.register_buffer("cos", freqs.cos()[None, :, None, :], persistent=False)
        self.register_buffer("sin", freqs.sin()[None, :, None, :], persistent=False)
        self.resid_lambdas = nn.Parameter(torch.ones(3))
        self.x0_lambdas = nn.Parameter(torch.full((3,), 0.1))

    def forward(self, idx):
        B, T = idx.size()
        assert T <= self.cos.size(1)
        cos_sin = self.cos[:, :T], self.sin[:, :T]
        x = norm(self.wte(idx))
        x0 = x
        for i, block in enumerate(self.h):
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            x = block(x, cos_sin)
        x = norm(x)
        softcap = 15
        return softcap * torch.tanh(self.lm_head(x) / softcap)


def build():
    torch.manual_seed(3)
    m = GPT().eval()
    with torch.no_grad():
        for b in m.h: b.attn.attn_gate.weight.mul_(4)
    return m

SIZES = dict(batch=2, n=11)
def inputs(batch=2, n=11): return dict(idx=torch.randint(0, 60, (batch, n)))
DYNAMIC = dict(idx={0: "batch", 1: "n"})
TRUTH = dict(gated=3, sparse=3, notes="nanochat: gate from first 12 channels, hard threshold; rope before qk norm; enable_gqa; embeddings mixed in")

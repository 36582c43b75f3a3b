import torch
from torch import nn
import torch.nn.functional as F


class MultiHeadAttention(nn.Module):
    def __init__(self, n_state, n_head):
        super().__init__()
        self.n_head = n_head
        self.query, self.key, self.value, self.out = nn.Linear(n_state, n_state), nn.Linear(n_state, n_state, bias=False), nn.Linear(n_state, n_state), nn.Linear(n_state, n_state)
        self.gate = nn.Linear(n_state, n_head)
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, xa=None, mask=None):
        q = self.query(x)
        k = self.key(x if xa is None else xa)
        v = self.value(x if xa is None else xa)
        wv, qk = self.qkv_attention(q, k, v, mask, self.head_gate(x))
        return self.out(wv), qk

    def head_gate(self, x):
        """top-p: the smallest set of heads whose probability reaches 0.7"""
        p = F.softmax(self.gate(x) / self.temperature, dim=-1)
        sp, si = p.sort(dim=-1, descending=True)
        keep = sp.cumsum(dim=-1) - sp < 0.7
        return torch.zeros_like(p).scatter(-1, si, sp * keep)

    def qkv_attention(self, q, k, v, mask, g):
        n_batch, n_ctx, n_state = q.shape
        scale = (n_state // self.n_head) ** -0.25
        q = q.view(*q.shape[:2], self.n_head, -1).permute(0, 2, 1, 3)
        k = k.view(*k.shape[:2], self.n_head, -1).permute(0, 2, 1, 3)
        v = v.view(*v.shape[:2], self.n_head, -1).permute(0, 2, 1, 3)
        qk = (q * scale) @ (k * scale).transpose(-1, -2)
        if mask is not None:
            qk = qk + mask[:n_ctx, :n_ctx]
        qk = qk.float()
        w = F.softmax(qk, dim=-1).to(q.dtype)
        out = (w @ v).permute(0, 2, 1, 3) * g[..., None]
        return out.flatten(start_dim=2), qk.detach()


class ResidualAttentionBlock(nn.Module):
    def __init__(self, n, h, cross=False):
        super().__init__()
        self.attn, self.attn_ln = MultiHeadAttention(n, h), nn.LayerNorm(n)
        self.cross_attn = MultiHeadAttention(n, h) if cross else None
        self.cross_attn_ln = nn.LayerNorm(n) if cross else None
        self.mlp, self.mlp_ln = nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n)), nn.LayerNorm(n)

    def forward(self, x, xa=None, mask=None):
        x = x + self.attn(self.attn_ln(x), mask=mask)[0]
        if self.cross_attn:
            x = x + self.cross_attn(self.cross_attn_ln(x), xa)[0]
        return x + self.mlp(self.mlp_ln(x))


class Whisper(nn.Module):
    def __init__(self, n=32, h=4, n_ctx=24):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(10, n, 3, padding=1), nn.Conv1d(n, n, 3, stride=2, padding=1)
        inc = torch.arange(64)[:, None] * torch.exp(-torch.arange(n // 2) * 0.6)[None]
        self.register_buffer("enc_pos", torch.cat([inc.sin(), inc.cos()], 1))
        self.enc, self.ln_post = nn.ModuleList([ResidualAttentionBlock(n, h)]), nn.LayerNorm(n)
        self.token_embedding, self.positional_embedding = nn.Embedding(50, n), nn.Parameter(torch.randn(n_ctx, n) * 0.1)
        self.dec, self.ln = nn.ModuleList([ResidualAttentionBlock(n, h, True)]), nn.LayerNorm(n)
        self.register_buffer("mask", torch.empty(n_ctx, n_ctx).fill_(float("-inf")).triu_(1), persistent=False)

    def forward(self, mel, tokens):
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).permute(0, 2, 1)
        x = x + self.enc_pos[: x.shape[1]]
        for b in self.enc: x = b(x)
        xa = self.ln_post(x)
        y = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[-1]]
        for b in self.dec: y = b(y, xa, mask=self.mask)
        return (self.ln(y) @ torch.transpose(self.token_embedding.weight, 0, 1)).float()


def build():
    torch.manual_seed(15)
    m = Whisper().eval()
    with torch.no_grad():
        for n, p in m.named_parameters():
            if n.endswith("gate.weight"): p.mul_(3)
    return m

SIZES = dict(batch=2, n=7)
def inputs(batch=2, n=7): return dict(mel=torch.randn(batch, 10, 30), tokens=torch.randint(0, 50, (batch, n)))
DYNAMIC = dict(mel={0: "batch"}, tokens={0: "batch", 1: "n"})
TRUTH = dict(gated=3, sparse=3, notes="Whisper: scale split on q and k, mask sliced twice, top-p gates with learned temperature; cross attention gated too")

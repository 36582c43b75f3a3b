import torch
from math import sqrt
from torch import nn
import torch.nn.functional as F


class FullAttention(nn.Module):
    def __init__(self, mask_flag=False, scale=None, output_attention=False):
        super().__init__()
        self.scale, self.mask_flag, self.output_attention = scale, mask_flag, output_attention

    def forward(self, queries, keys, values, attn_mask, tau=None, delta=None):
        B, L, H, E = queries.shape
        scale = self.scale or 1.0 / sqrt(E)
        scores = torch.einsum("blhe,bshe->bhls", queries, keys)
        A = torch.softmax(scale * scores, dim=-1)
        V = torch.einsum("bhls,bshd->blhd", A, values)
        return V.contiguous(), A if self.output_attention else None


class AttentionLayer(nn.Module):
    def __init__(self, attention, d_model, n_heads, active):
        super().__init__()
        self.inner_attention, self.n_heads, self.active = attention, n_heads, active
        self.query_projection, self.key_projection, self.value_projection, self.out_projection = (nn.Linear(d_model, d_model) for _ in range(4))
        self.router = nn.Sequential(nn.Linear(d_model, 16), nn.Tanh(), nn.Linear(16, n_heads))

    def forward(self, queries, keys, values, attn_mask=None, tau=None, delta=None):
        B, L, _ = queries.shape
        _, S, _ = keys.shape
        H = self.n_heads
        r = self.router(queries)
        q = self.query_projection(queries).view(B, L, H, -1)
        k = self.key_projection(keys).view(B, S, H, -1)
        v = self.value_projection(values).view(B, S, H, -1)
        out, attn = self.inner_attention(q, k, v, attn_mask, tau=tau, delta=delta)
        # rank of each head by comparing all pairs (no topk, which was slow on our boards)
        rank = (r.unsqueeze(-2) > r.unsqueeze(-1)).sum(-1)
        w = torch.exp(r) * (rank < self.active)
        w = w / w.sum(-1, keepdim=True)
        out = torch.einsum("blhd,blh->blhd", out, w)
        return self.out_projection(out.reshape(B, L, -1)), attn


class EncoderLayer(nn.Module):
    def __init__(self, attention, d):
        super().__init__()
        self.attention, self.conv1, self.conv2 = attention, nn.Conv1d(d, 2 * d, 1), nn.Conv1d(2 * d, d, 1)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x):
        new_x, attn = self.attention(x, x, x)
        y = x = self.norm1(x + new_x)
        y = self.conv2(F.gelu(self.conv1(y.transpose(-1, 1)))).transpose(-1, 1)
        return self.norm2(x + y), attn


class iTransformer(nn.Module):
    def __init__(self, seq_len=24, pred_len=6, d=48):
        super().__init__()
        self.enc_embedding = nn.Linear(seq_len, d)
        self.layers = nn.ModuleList([EncoderLayer(AttentionLayer(FullAttention(), d, 6, 3), d) for _ in range(2)])
        self.norm, self.projection, self.pred_len = nn.LayerNorm(d), nn.Linear(d, pred_len), pred_len

    def forward(self, x_enc, x_mark_enc):
        means = x_enc.mean(1, keepdim=True).detach()
        x_enc = x_enc - means
        stdev = torch.sqrt(torch.var(x_enc, dim=1, keepdim=True, unbiased=False) + 1e-5)
        x_enc = x_enc / stdev
        _, _, N = x_enc.shape
        x = self.enc_embedding(torch.cat([x_enc.permute(0, 2, 1), x_mark_enc.permute(0, 2, 1)], 1))
        for l in self.layers: x, _ = l(x)
        dec = self.projection(self.norm(x)).permute(0, 2, 1)[:, :, :N]
        dec = dec * stdev[:, 0, :].unsqueeze(1).repeat(1, self.pred_len, 1) + means[:, 0, :].unsqueeze(1).repeat(1, self.pred_len, 1)
        return dec[:, -self.pred_len :, :]


def build():
    torch.manual_seed(18)
    m = iTransformer().eval()
    with torch.no_grad():
        for l in m.layers: l.attention.router[2].weight.mul_(6)
    return m

SIZES = dict(batch=2, vars=5)
def inputs(batch=2, vars=5): return dict(x_enc=torch.randn(batch, 24, vars).cumsum(1), x_mark_enc=torch.randn(batch, 24, 4))
DYNAMIC = dict(x_enc={0: "batch", 2: "vars"}, x_mark_enc={0: "batch"})
TRUTH = dict(gated=2, sparse=2, notes="Time-Series-Library: einsum attention over variates, two-layer router, rank by pairwise comparison, exp times mask over sum")

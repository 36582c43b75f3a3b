"""Moirai (uni2ts): any-variate attention: all patches of all variates are one sequence, learned biases of each head for the same and for other variates, rotary by time index; gates of each head by an MLP over a variate's statistics, hard sigmoid, the same for all its patches."""
import torch, torch.nn.functional as F
from torch import nn


class BinaryAttentionBias(nn.Module):
    def __init__(self, num_heads): super().__init__(); self.emb = nn.Embedding(2, num_heads)
    def forward(self, query_id, kv_id):
        ind = query_id.unsqueeze(-1) == kv_id.unsqueeze(-2)      # b q k
        weight = self.emb.weight.t()[:, :, None, None, None]     # h 2 1 1 1
        return (~ind * weight[:, 0] + ind * weight[:, 1]).transpose(0, 1)


def rotary(x, time):
    half = x.shape[-1] // 2
    angle = time[:, None, :, None] * (10000 ** (-torch.arange(half) / half))
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)


class GroupedQueryAttention(nn.Module):
    def __init__(self, dim, num_heads, num_groups):
        super().__init__()
        self.h, self.g, self.head_dim = num_heads, num_groups, dim // num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, self.head_dim * num_groups, bias=False), nn.Linear(dim, self.head_dim * num_groups, bias=False), nn.Linear(dim, dim, bias=False)
        self.q_norm, self.k_norm, self.var_attn_bias = nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim), BinaryAttentionBias(num_heads)

    def forward(self, x, var_id, time_id, gates):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = self.q_norm(q.unflatten(-1, (self.g, self.h // self.g, self.head_dim))).permute(0, 2, 3, 1, 4)   # b g r s d
        k, v = (t.unflatten(-1, (self.g, 1, self.head_dim)).permute(0, 2, 3, 1, 4).expand(-1, -1, self.h // self.g, -1, -1) for t in (k, v))
        k = self.k_norm(k)
        q, k, v = (t.flatten(1, 2) for t in (q, k, v))
        q, k = rotary(q, time_id), rotary(k, time_id)
        bias = self.var_attn_bias(var_id, var_id)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out_proj((y.transpose(1, 2) * gates[..., None]).flatten(2))


class Moirai(nn.Module):
    def __init__(self, d=32, heads=4, patch=8, pred=4):
        super().__init__()
        self.patch, self.in_proj, self.head = patch, nn.Linear(patch, d), nn.Linear(d, pred)
        self.layers, self.norms = nn.ModuleList([GroupedQueryAttention(d, heads, 2) for _ in range(2)]), nn.ModuleList([nn.RMSNorm(d) for _ in range(2)])
        self.gate_mlps = nn.ModuleList([nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, heads)) for _ in range(2)])

    def forward(self, series):                                   # b, variates, steps
        mean, std = series.mean(-1, keepdim=True), series.std(-1, keepdim=True) + 1e-3
        trend = (series[..., -1:] - series[..., :1]) / std
        patches = ((series - mean) / std).unfold(-1, self.patch, self.patch)        # b v p l
        b, v, p, _ = patches.shape
        stats = torch.cat([mean, std.log(), trend], -1)          # b v 3
        x = self.in_proj(patches).reshape(b, v * p, -1)
        var_id = torch.arange(v).repeat_interleave(p)[None].expand(b, -1)
        time_id = torch.arange(p).repeat(v)[None].expand(b, -1).float()
        for layer, norm, mlp in zip(self.layers, self.norms, self.gate_mlps):
            gates = F.hardsigmoid(3 * mlp(stats)).unsqueeze(2).expand(-1, -1, p, -1).reshape(b, v * p, -1)
            x = x + layer(norm(x), var_id, time_id, gates)
        y = self.head(x).view(b, v, p, -1)[:, :, -1]
        return y * std + mean


def build():
    torch.manual_seed(104)
    m = Moirai().eval()
    with torch.no_grad():
        for mlp in m.gate_mlps: mlp[2].weight.mul_(6)
    return m

SIZES = dict(batch=2, variates=3, n=4)
def inputs(batch=2, variates=3, n=4): return dict(series=torch.randn(batch, variates, 8 * n).cumsum(-1))
DYNAMIC = dict(series={0: "batch", 1: "variates", 2: "8*n"})
TRUTH = dict(gated=2, sparse=2, notes="any-variate attention: bias by same or other variate, gates of a variate repeated over its patches, hard sigmoid of an MLP over statistics")

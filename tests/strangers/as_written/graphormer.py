"""Graphormer (fairseq): seq-first, bmm with heads in batch, attn_bias of spatial encoding, graph token; the graph token's features gate the heads (per sample)."""
import torch, torch.nn.functional as F
from torch import nn


class MultiheadAttention(nn.Module):
    def __init__(self, embed_dim, num_heads, k):
        super().__init__()
        self.num_heads, self.head_dim, self.k = num_heads, embed_dim // num_heads, k
        self.scaling = self.head_dim**-0.5
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(embed_dim, embed_dim) for _ in range(4))
        self.head_select = nn.Linear(embed_dim, num_heads)

    def forward(self, query, key_padding_mask, attn_bias):
        tgt_len, bsz, embed_dim = query.size()
        sel = self.head_select(query[0]).softmax(-1)  # [graph token] bsz x heads
        topv, topi = sel.topk(self.k, -1)
        sel = torch.zeros_like(sel).scatter_(1, topi, topv / topv.sum(-1, keepdim=True))
        q = self.q_proj(query) * self.scaling
        k, v = self.k_proj(query), self.v_proj(query)
        q, k, v = (t.contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1) for t in (q, k, v))
        w = torch.bmm(q, k.transpose(1, 2))
        w += attn_bias.view(bsz * self.num_heads, tgt_len, tgt_len)
        w = w.view(bsz, self.num_heads, tgt_len, tgt_len)
        w = w.masked_fill(key_padding_mask.unsqueeze(1).unsqueeze(2).to(torch.bool), float("-inf"))
        w = F.softmax(w.view(bsz * self.num_heads, tgt_len, tgt_len), dim=-1)
        attn = torch.bmm(w, v)
        attn = attn * sel.view(bsz * self.num_heads, 1, 1)
        attn = attn.transpose(0, 1).contiguous().view(tgt_len, bsz, embed_dim)
        return self.out_proj(attn)


class GraphormerLayer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.self_attn, self.n1, self.n2 = MultiheadAttention(d, h, 3), nn.LayerNorm(d), nn.LayerNorm(d)
        self.fc1, self.fc2 = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x, pad, bias):
        x = self.n1(x + self.self_attn(x, pad, bias))
        return self.n2(x + self.fc2(F.gelu(self.fc1(x))))


class Graphormer(nn.Module):
    def __init__(self, d=40, h=5):
        super().__init__()
        self.h = h
        self.atom, self.degree, self.spatial = nn.Embedding(20, d, padding_idx=0), nn.Embedding(8, d), nn.Embedding(10, h)
        self.graph_token, self.virt = nn.Embedding(1, d), nn.Embedding(1, h)
        self.layers = nn.ModuleList([GraphormerLayer(d, h) for _ in range(2)])
        self.out = nn.Linear(d, 1)

    def forward(self, x, in_degree, spatial_pos):
        b, n = x.shape
        pad = torch.cat([torch.zeros(b, 1, dtype=torch.bool), x.eq(0)], 1)
        node = self.atom(x) + self.degree(in_degree)
        node = torch.cat([self.graph_token.weight.unsqueeze(0).repeat(b, 1, 1), node], dim=1)
        bias = torch.zeros(b, self.h, n + 1, n + 1)
        bias[:, :, 1:, 1:] = bias[:, :, 1:, 1:] + self.spatial(spatial_pos).permute(0, 3, 1, 2)
        t = self.virt.weight.view(1, self.h, 1)
        bias[:, :, 1:, 0] = bias[:, :, 1:, 0] + t
        bias[:, :, 0, :] = bias[:, :, 0, :] + t
        h = node.transpose(0, 1)
        for l in self.layers:
            h = l(h, pad, bias)
        return self.out(h[0])


def build():
    torch.manual_seed(18)
    m = Graphormer()
    for l in m.layers:
        nn.init.normal_(l.self_attn.head_select.weight, std=0.6)
    return m.eval()


SIZES = dict(batch=2, n=7)


def inputs(batch=2, n=7):
    x = torch.randint(1, 20, (batch, n))
    x[:, 2:] *= (torch.arange(2, n)[None] < torch.randint(2, n + 1, (batch, 1))).long()
    return dict(x=x, in_degree=torch.randint(0, 8, (batch, n)), spatial_pos=torch.randint(0, 10, (batch, n, n)))


DYNAMIC = dict(x={0: "batch", 1: "n"}, in_degree={0: "batch", 1: "n"}, spatial_pos={0: "batch", 1: "n", 2: "n"})
TRUTH = dict(gated=2, sparse=2, notes="per-sample gates of the graph token, heads in batch, seq first, bias written by slices in place")

"""DETR decoder: seq-first, bmm with heads in batch, key_padding_mask, gates by class of query pos; own MHA after torch's functional."""
import torch, torch.nn.functional as F
from torch import nn


class MultiheadAttention(nn.Module):
    def __init__(self, embed_dim, num_heads, top_k):
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim, self.top_k = embed_dim, num_heads, embed_dim // num_heads, top_k
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.gate_proj = nn.Linear(embed_dim, num_heads)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query, key, value, key_padding_mask=None):
        tgt_len, bsz, embed_dim = query.shape
        src_len = key.shape[0]
        w_q, w_k, w_v = self.in_proj_weight.chunk(3)
        b_q, b_k, b_v = self.in_proj_bias.chunk(3)
        gate_logits = self.gate_proj(query)
        q = F.linear(query, w_q, b_q) * self.head_dim**-0.5
        k, v = F.linear(key, w_k, b_k), F.linear(value, w_v, b_v)
        q = q.contiguous().view(tgt_len, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        k = k.contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        v = v.contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        attn = torch.bmm(q, k.transpose(1, 2))
        if key_padding_mask is not None:
            attn = attn.view(bsz, self.num_heads, tgt_len, src_len)
            attn = attn.masked_fill(key_padding_mask.unsqueeze(1).unsqueeze(2), float("-inf"))
            attn = attn.view(bsz * self.num_heads, tgt_len, src_len)
        attn = F.softmax(attn, dim=-1)
        out = torch.bmm(attn, v)
        g = torch.softmax(gate_logits, -1)
        thr = torch.topk(g, self.top_k, dim=-1)[0].min(dim=-1, keepdim=True)[0]
        g = g * (g >= thr).float()
        out = out * g.reshape(tgt_len, bsz * self.num_heads).t().unsqueeze(-1)
        out = out.transpose(0, 1).contiguous().view(tgt_len, bsz, embed_dim)
        return self.out_proj(out)


class DecoderLayer(nn.Module):
    def __init__(self, d, nhead, k):
        super().__init__()
        self.self_attn, self.multihead_attn = MultiheadAttention(d, nhead, k), MultiheadAttention(d, nhead, k)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, tgt, memory, pad, pos, query_pos):
        q = k = tgt + query_pos
        tgt = self.norm1(tgt + self.self_attn(q, k, value=tgt))
        tgt = self.norm2(tgt + self.multihead_attn(tgt + query_pos, memory + pos, memory, key_padding_mask=pad))
        return self.norm3(tgt + self.linear2(F.relu(self.linear1(tgt))))


class DETRHead(nn.Module):
    def __init__(self, d=32, nhead=4, queries=5):
        super().__init__()
        self.query_embed = nn.Embedding(queries, d)
        self.layers = nn.ModuleList([DecoderLayer(d, nhead, 2) for _ in range(2)])
        self.class_embed, self.bbox = nn.Linear(d, 7), nn.Linear(d, 4)

    def forward(self, src, mask, pos_embed):
        bs = src.shape[0]
        src, pos_embed = src.permute(1, 0, 2), pos_embed.permute(1, 0, 2)
        query_embed = self.query_embed.weight.unsqueeze(1).repeat(1, bs, 1)
        tgt = torch.zeros_like(query_embed)
        inter = []
        for l in self.layers:
            tgt = l(tgt, src, mask, pos_embed, query_embed)
            inter.append(tgt)
        hs = torch.stack(inter).transpose(1, 2)
        return {"pred_logits": self.class_embed(hs)[-1], "pred_boxes": self.bbox(hs).sigmoid()[-1]}


def build():
    torch.manual_seed(14)
    m = DETRHead()
    for x in m.modules():
        if isinstance(x, MultiheadAttention):
            nn.init.normal_(x.gate_proj.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=9)


def inputs(batch=2, n=9):
    mask = torch.arange(n)[None] >= torch.randint(2, n + 1, (batch, 1))
    return dict(src=torch.randn(batch, n, 32), mask=mask, pos_embed=torch.randn(batch, n, 32))


DYNAMIC = {k: {0: "batch", 1: "n"} for k in ("src", "mask", "pos_embed")}
TRUTH = dict(gated=4, sparse=4, notes="layer 0's self attention has a constant router (learned queries); its values are constants 0 + bias too (tgt = zeros), so v is constant")

import math, torch
from torch import nn


class XSoftmax:
    @staticmethod
    def apply(input, mask, dim):
        rmask = ~(mask.to(torch.bool))
        output = input.masked_fill(rmask, float(torch.finfo(input.dtype).min))
        output = torch.softmax(output, dim)
        return output.masked_fill(rmask, 0)


class DisentangledSelfAttention(nn.Module):
    def __init__(self, d, heads, max_pos):
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.max_pos = heads, d // heads, max_pos
        self.query_proj, self.key_proj, self.value_proj = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.pos_key_proj, self.pos_query_proj = nn.Linear(d, d), nn.Linear(d, d)
        self.dense, self.LayerNorm = nn.Linear(d, d), nn.LayerNorm(d)
        self.head_gate = nn.Linear(d, heads)

    def transpose_for_scores(self, x):
        x = x.view(x.size()[:-1] + (self.num_attention_heads, -1))
        return x.permute(0, 2, 1, 3).contiguous().view(-1, x.size(1), x.size(-1))

    def forward(self, hidden_states, attention_mask, relative_pos, rel_embeddings):
        q = self.transpose_for_scores(self.query_proj(hidden_states))
        k = self.transpose_for_scores(self.key_proj(hidden_states))
        v = self.transpose_for_scores(self.value_proj(hidden_states))
        scale = math.sqrt(q.size(-1) * 3)
        scores = torch.bmm(q, k.transpose(-1, -2) / scale)
        b, n = hidden_states.shape[:2]
        pos_k = self.transpose_for_scores(self.pos_key_proj(rel_embeddings).unsqueeze(0)).repeat(b, 1, 1)
        pos_q = self.transpose_for_scores(self.pos_query_proj(rel_embeddings).unsqueeze(0)).repeat(b, 1, 1)
        idx = torch.clamp(relative_pos + self.max_pos, 0, self.max_pos * 2 - 1)
        c2p = torch.bmm(q, pos_k.transpose(-1, -2))
        c2p = torch.gather(c2p, dim=-1, index=idx.expand(q.size(0), n, n))
        p2c = torch.bmm(k, pos_q.transpose(-1, -2))
        p2c = torch.gather(p2c, dim=-1, index=torch.clamp(-relative_pos.transpose(-1, -2) + self.max_pos, 0, self.max_pos * 2 - 1).expand(q.size(0), n, n)).transpose(-1, -2)
        scores = scores + c2p / scale + p2c / scale
        scores = scores.view(-1, self.num_attention_heads, n, n)
        probs = XSoftmax.apply(scores, attention_mask, -1)
        ctx = torch.bmm(probs.view(-1, n, n), v)
        ctx = ctx.view(-1, self.num_attention_heads, n, ctx.size(-1)).permute(0, 2, 1, 3).contiguous()
        g = torch.sigmoid(self.head_gate(hidden_states))
        vals, inds = torch.topk(g, 2, dim=-1)
        g = torch.zeros_like(g).scatter(-1, inds, vals / (vals.sum(-1, keepdim=True) + 1e-6))
        ctx = ctx * g.unsqueeze(-1)
        ctx = ctx.view(ctx.size()[:-2] + (-1,))
        return self.LayerNorm(self.dense(ctx) + hidden_states)


class Deberta(nn.Module):
    def __init__(self, d=32, max_pos=6):
        super().__init__()
        self.emb, self.ln, self.rel = nn.Embedding(60, d), nn.LayerNorm(d), nn.Embedding(2 * max_pos, d)
        self.layer = nn.ModuleList([DisentangledSelfAttention(d, 4, max_pos) for _ in range(2)])
        self.ff = nn.ModuleList([nn.Sequential(nn.Linear(d, 64), nn.GELU(), nn.Linear(64, d)) for _ in range(2)])

    def forward(self, input_ids, attention_mask):
        x = self.ln(self.emb(input_ids)) * attention_mask.unsqueeze(2).float()
        ext = attention_mask.unsqueeze(1).unsqueeze(2)
        ext = ext * ext.squeeze(-2).unsqueeze(-1)
        n = input_ids.size(1)
        ids = torch.arange(n)
        rel = (ids[:, None] - ids.view(1, -1).repeat(n, 1)).unsqueeze(0)
        for l, f in zip(self.layer, self.ff):
            x = l(x, ext, rel, self.rel.weight)
            x = x + f(x)
        return (x,)


def build():
    torch.manual_seed(13)
    m = Deberta().eval()
    with torch.no_grad():
        for l in m.layer: l.head_gate.weight.mul_(6)
    return m

SIZES = dict(batch=2, n=9)
def inputs(batch=2, n=9):
    mask = torch.ones(batch, n, dtype=torch.long); mask[0, -2:] = 0
    return dict(input_ids=torch.randint(0, 60, (batch, n)), attention_mask=mask)
DYNAMIC = dict(input_ids={0: "batch", 1: "n"}, attention_mask={0: "batch", 1: "n"})
VALID = "attention_mask"
TRUTH = dict(gated=2, sparse=2, notes="DeBERTa: c2p and p2c by gather, two-dimensional padding mask, masked softmax refilled with 0, rows of padding all masked")

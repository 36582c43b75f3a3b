"""Q-Former: query tokens, self attention (ungated in layer 1), cross attention to an image every other layer, gates renormalised sigmoid with a shared head; float16 weights no."""
import math, torch
from torch import nn


class QFormerAttention(nn.Module):
    def __init__(self, hidden, heads, enc=None, gated=True):
        super().__init__()
        self.h, self.dh, self.gated = heads, hidden // heads, gated
        self.query, self.key, self.value = nn.Linear(hidden, hidden), nn.Linear(enc or hidden, hidden), nn.Linear(enc or hidden, hidden)
        self.dense, self.LayerNorm, self.dropout = nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.Dropout(0.1)
        if gated:
            self.router = nn.Linear(hidden, heads - 1)

    def tfs(self, x):
        return x.view(*x.size()[:-1], self.h, self.dh).permute(0, 2, 1, 3)

    def forward(self, hidden, encoder=None, mask=None):
        src = hidden if encoder is None else encoder
        q, k, v = self.tfs(self.query(hidden)), self.tfs(self.key(src)), self.tfs(self.value(src))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.dh)
        if mask is not None:
            scores = scores + mask
        context = torch.matmul(self.dropout(nn.Softmax(dim=-1)(scores)), v)
        context = context.permute(0, 2, 1, 3).contiguous()
        if self.gated:
            r = self.router(hidden).sigmoid()
            keep = r >= r.kthvalue(self.h - 2, dim=-1, keepdim=True).values  # the best two of heads - 1
            r = r * keep
            r = r / r.sum(dim=-1, keepdim=True).clamp_min(1e-6)
            g = torch.cat([torch.ones_like(r[..., :1]), r], dim=-1)  # head 0 is shared
            context = context * g[..., None]
        context = context.view(*context.size()[:-2], self.h * self.dh)
        return self.LayerNorm(self.dropout(self.dense(context)) + hidden)


class QFormer(nn.Module):
    def __init__(self, hidden=32, heads=4, enc=24):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.randn(1, 4, hidden))
        self.word = nn.Embedding(30, hidden)
        self.sa = nn.ModuleList([QFormerAttention(hidden, heads), QFormerAttention(hidden, heads, gated=False)])
        self.ca = QFormerAttention(hidden, heads, enc)

    def forward(self, image_embeds, input_ids, attention_mask):
        nq = self.query_tokens.shape[1]
        x = torch.cat([self.query_tokens.expand(image_embeds.shape[0], -1, -1), self.word(input_ids)], 1)
        full = torch.cat([torch.ones(x.shape[0], nq, dtype=attention_mask.dtype), attention_mask], 1)
        mask = (1.0 - full[:, None, None].to(x.dtype)) * -10000.0
        for i, sa in enumerate(self.sa):
            x = sa(x, mask=mask)
            if i % 2 == 0:
                q = self.ca(x[:, :nq], image_embeds)
                x = torch.cat([q, x[:, nq:]], 1)
        return {"query": x[:, :nq], "text": x[:, nq:]}


def build():
    torch.manual_seed(27)
    m = QFormer()
    for a in (m.sa[0], m.ca):
        nn.init.normal_(a.router.weight, std=0.6)
    return m.eval()


SIZES = dict(batch=2, n=7, seq=5)
VALID = "attention_mask"


def inputs(batch=2, n=7, seq=5):
    mask = (torch.arange(seq)[None] < torch.randint(2, seq + 1, (batch, 1))).long()
    return dict(image_embeds=torch.randn(batch, n, 24), input_ids=torch.randint(0, 30, (batch, seq)), attention_mask=mask)


DYNAMIC = dict(image_embeds={0: "batch", 1: "n"}, input_ids={0: "batch", 1: "seq"}, attention_mask={0: "batch", 1: "seq"})
TRUTH = dict(gated=2, sparse=2, notes="shared head 0 of gate 1, kth-value threshold; the second self attention is ungated")

"""MoSA (piotrpiekos): each head gathers its k best tokens, attends among these, weighs them by the router and adds them back; dense heads beside, with head-wise gates."""
import torch, torch.nn.functional as F
from torch import nn


class MoSA(nn.Module):
    def __init__(self, d, heads, dh, k):
        super().__init__()
        self.heads, self.dh, self.k = heads, dh, k
        self.router = nn.Linear(d, heads, bias=False)
        self.Wq, self.Wk, self.Wv = (nn.Parameter(torch.randn(heads, d, dh) * d**-0.5) for _ in range(3))
        self.Wo = nn.Parameter(torch.randn(heads, dh, d) * dh**-0.5)

    def forward(self, x):
        b, t, d = x.shape
        scores = torch.sigmoid(self.router(x)).transpose(1, 2)          # b h t
        w, idx = torch.topk(scores, self.k, dim=-1)
        idx, order = idx.sort(dim=-1)
        w = w.gather(-1, order)
        xs = x.unsqueeze(1).expand(-1, self.heads, -1, -1).gather(2, idx.unsqueeze(-1).expand(-1, -1, -1, d))   # b h k d
        q, k, v = (torch.einsum("bhkd,hde->bhke", xs, p) for p in (self.Wq, self.Wk, self.Wv))
        mask = idx.unsqueeze(-1) >= idx.unsqueeze(-2)
        s = (q @ k.transpose(-1, -2) * self.dh**-0.5).masked_fill(~mask, float("-inf"))
        o = (s.softmax(-1) @ v) * w.unsqueeze(-1)
        o = torch.einsum("bhke,hed->bhkd", o, self.Wo)
        y = torch.zeros_like(x)
        return y.scatter_add(1, idx.flatten(1).unsqueeze(-1).expand(-1, -1, d), o.flatten(1, 2))


class Dense(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h, self.qkv, self.o, self.gate = h, nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False), nn.Linear(d, h)
    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.h, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        g = F.relu(self.gate(x) - 0.1).transpose(1, 2)
        return self.o((y * g[..., None]).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.n1, self.n2, self.mosa, self.dense, self.mlp = nn.LayerNorm(d), nn.LayerNorm(d), MoSA(d, 6, 8, 4), Dense(d, 4), nn.Sequential(nn.Linear(d, 64), nn.GELU(), nn.Linear(64, d))
    def forward(self, x):
        h = self.n1(x)
        x = x + self.mosa(h) + self.dense(h)
        return x + self.mlp(self.n2(x))


class Net(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.emb, self.pos, self.blocks = nn.Embedding(80, d), nn.Embedding(64, d), nn.ModuleList([Block(d) for _ in range(2)])
    def forward(self, ids):
        x = self.emb(ids) + self.pos(torch.arange(ids.shape[1]))
        for b in self.blocks: x = b(x)
        return x @ self.emb.weight.T


def build():
    torch.manual_seed(105)
    return Net().eval()

SIZES = dict(batch=2, seq=10)
def inputs(batch=2, seq=10): return dict(ids=torch.randint(0, 80, (batch, seq)))
DYNAMIC = dict(ids={0: "batch", 1: "seq"})
TRUTH = dict(gated=4, sparse=2, notes="real MoSA: tokens are gathered for each head, so its gates are of chosen tokens and never 0; each head's token is another: found or named; the dense heads beside are MoH")

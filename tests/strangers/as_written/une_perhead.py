"""NOT exportable sensibly: heads are really skipped in Python, one by one, by nonzero() and index_add (the sparse implementation itself)."""
import torch
from torch import nn


class SparseHeads(nn.Module):
    def __init__(self, d, h, k):
        super().__init__()
        self.h, self.k, self.dh = h, k, d // h
        self.q, self.kk, self.v, self.o = (nn.ModuleList([nn.Linear(*s) for _ in range(h)]) for s in ((d, d // h), (d, d // h), (d, d // h), (d // h, d)))
        self.gate = nn.Linear(d, h)

    def forward(self, x):
        b, n, d = x.shape
        w, sel = self.gate(x).softmax(-1).topk(self.k, -1)
        flat = x.reshape(-1, d)
        out = torch.zeros_like(flat)
        sel, w = sel.reshape(-1, self.k), w.reshape(-1, self.k)
        bidx = torch.arange(b).repeat_interleave(n)
        for i in range(self.h):
            tok, slot = torch.where(sel == i)
            if tok.numel() == 0:
                continue
            k, v = self.kk[i](x), self.v[i](x)
            a = (self.q[i](flat[tok])[:, None] @ k[bidx[tok]].mT * self.dh**-0.5).softmax(-1) @ v[bidx[tok]]
            out.index_add_(0, tok, self.o[i](a[:, 0]) * w[tok, slot, None])
        return out.view(b, n, d)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n = SparseHeads(32, 4, 2), nn.LayerNorm(32)

    def forward(self, x):
        return x + self.a(self.n(x))


def build():
    torch.manual_seed(35)
    m = Net()
    nn.init.normal_(m.a.gate.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=7)


def inputs(batch=2, n=7):
    return dict(x=torch.randn(batch, n, 32))


DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=1, sparse=1, notes="UNEXPORTABLE: Mixtral's loop over experts, for heads; numel() == 0 branch. Expect a refusal with line and remedy (or an export that is right)", refuse=True)

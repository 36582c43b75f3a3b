import torch
from torch import nn


class SparseHeads(nn.Module):
    """The fast path people write by hand: each head computes only the tokens that chose it."""
    def __init__(self, d, h):
        super().__init__()
        self.h, self.hd = h, d // h
        self.q, self.k, self.v, self.o, self.router = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, h)

    def forward(self, x):
        n, d = x.shape
        w, idx = torch.topk(self.router(x).softmax(-1), 2, dim=-1)
        out = torch.zeros(n, self.h, self.hd)
        k, v = self.k(x).view(n, self.h, self.hd), self.v(x).view(n, self.h, self.hd)
        for i in range(self.h):
            tok, slot = torch.where(idx == i)
            if tok.numel() == 0:
                continue
            q = nn.functional.linear(x[tok], self.q.weight[i * self.hd : (i + 1) * self.hd], self.q.bias[i * self.hd : (i + 1) * self.hd])
            a = (q @ k[:, i].T * self.hd**-0.5).softmax(-1)
            out[tok, i] = (a @ v[:, i]) * w[tok, slot, None]
        return self.o(out.flatten(1))


class M(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.e, self.a = nn.Linear(6, d), SparseHeads(d, 4)

    def forward(self, x):
        h = self.e(x)
        return h + self.a(h)


def build():
    torch.manual_seed(28)
    m = M().eval()
    with torch.no_grad(): m.a.router.weight.mul_(6)
    return m

SIZES = dict(tokens=12)
def inputs(tokens=12): return dict(x=torch.randn(tokens, 6))
DYNAMIC = dict(x={0: "tokens"})
TRUTH = dict(gated=1, sparse=1, notes="UNEXPORTABLE as written: data-dependent Python branch on numel(); a clear refusal with line and remedy is expected")

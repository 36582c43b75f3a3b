import torch
from torch import nn
import torch.nn.functional as F


class Attn(nn.Module):
    """A temperature for each token and head on the queries, chosen by top-k; no output is weighed."""
    def __init__(self, d, h):
        super().__init__()
        self.h, self.q, self.k, self.v, self.o, self.t = h, nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, h)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (f(x).view(b, n, self.h, -1) for f in (self.q, self.k, self.v))
        s = F.softmax(self.t(x), -1)
        val, idx = s.topk(2, -1)
        s = torch.zeros_like(s).scatter(-1, idx, val) * 2
        q = q * s.unsqueeze(-1)
        a = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        return self.o(torch.einsum("bhnm,bmhd->bnhd", a, v).reshape(b, n, d))


class M(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.e, self.a, self.f = nn.Linear(7, d), Attn(d, 4), nn.Linear(d, 3)

    def forward(self, x):
        x = self.e(x)
        return self.f(x + self.a(x))


def build():
    torch.manual_seed(25)
    return M().eval()

SIZES = dict(batch=2, n=8)
def inputs(batch=2, n=8): return dict(x=torch.randn(batch, n, 7))
DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=0, sparse=0, notes="no gates: queries times a sparse temperature (a head with 0 averages the values, it is not off)")

"""MoSA-like: expert choice: every head chooses its tokens (top-k along tokens), score times output; dense form with a mask of chosen keys."""
import torch
from torch import nn


class MoSA(nn.Module):
    def __init__(self, dim, heads, sparsity=2):
        super().__init__()
        self.h, self.dh, self.sparsity = heads, dim // heads, sparsity
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(heads, dim, self.dh) * dim**-0.5) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(heads, self.dh, dim) * dim**-0.5)
        self.router = nn.Linear(dim, heads, bias=False)

    def forward(self, x):
        r = self.router(x).sigmoid().transpose(1, 2)  # b h n
        k = max(x.shape[1] // self.sparsity, 1)
        val, idx = r.topk(k, dim=-1)
        chosen = torch.zeros_like(r).scatter(-1, idx, 1.0)
        q, key, v = (torch.einsum("bnd,hde->bhne", x, w) for w in (self.wq, self.wk, self.wv))
        s = q @ key.mT * self.dh**-0.5
        s = s.masked_fill(chosen.unsqueeze(2) == 0, float("-inf"))
        o = s.softmax(-1) @ v
        o = o * (r * chosen).unsqueeze(-1)
        return torch.einsum("bhne,hed->bnd", o, self.wo)


class Net(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.blocks = nn.ModuleList([MoSA(dim, heads) for _ in range(2)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        for b in self.blocks:
            x = x + b(self.norm(x))
        return x


def build():
    torch.manual_seed(24)
    m = Net()
    for b in m.blocks:
        nn.init.normal_(b.router.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=8)


def inputs(batch=2, n=8):
    return dict(x=torch.randn(batch, n, 32))


DYNAMIC = dict(x={0: "batch"})
TRUTH = dict(gated=2, sparse=2, notes="expert choice: top-k over tokens for each head (n fixed, as k depends on it)")

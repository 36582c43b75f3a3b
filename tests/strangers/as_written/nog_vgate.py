"""NO head gates: depth skipping: a router chooses tokens for the whole block (mixture of depths, as a mask), and gates on values by key."""
import torch, torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.h = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.router, self.norm = nn.Linear(dim, 1), nn.LayerNorm(dim)

    def forward(self, x):
        b, n, c = x.shape
        w = self.router(x).sigmoid()
        w = w * (w > 0.5)
        h = self.norm(x)
        q, k, v = (f(h).view(b, n, self.h, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + w * self.o(y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(32, 4) for _ in range(2)])

    def forward(self, x):
        for b in self.blocks:
            x = b(x)
        return x


def build():
    torch.manual_seed(33)
    m = Net()
    for b in m.blocks:
        nn.init.normal_(b.router.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=7)


def inputs(batch=2, n=7):
    return dict(x=torch.randn(batch, n, 32))


DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=0, sparse=0, notes="mixture of depths: a gate for each token, not for each head, behind the output projection")

import torch
from torch import nn


class UT(nn.Module):
    """Universal transformer with adaptive computation: while any token goes on; heads of halted tokens are closed."""
    def __init__(self, d=32, h=4):
        super().__init__()
        self.h, self.qkv, self.o, self.halt, self.router, self.n = h, nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 1), nn.Linear(d, h), nn.LayerNorm(d)
        self.e = nn.Linear(6, d)

    def forward(self, x):
        x = self.e(x)
        b, n, d = x.shape
        p = torch.zeros(b, n)
        step = 0
        while (p < 0.95).any() and step < 6:
            y = self.n(x)
            q, k, v = self.qkv(y).view(b, n, 3, self.h, -1).permute(2, 0, 3, 1, 4)
            a = nn.functional.scaled_dot_product_attention(q, k, v)
            g = torch.relu(self.router(y)) * (p < 0.95).unsqueeze(-1)
            x = x + self.o((a * g.transpose(1, 2).unsqueeze(-1)).transpose(1, 2).reshape(b, n, d))
            p = p + torch.sigmoid(self.halt(x)).squeeze(-1)
            step += 1
        return x, p


def build():
    torch.manual_seed(29)
    return UT().eval()

SIZES = dict(batch=2, n=8)
def inputs(batch=2, n=8): return dict(x=torch.randn(batch, n, 6))
DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=1, sparse=1, notes="UNEXPORTABLE as written: while loop on data; a clear refusal with line and remedy is expected")

import torch
from torch import nn


class Attn(nn.Module):
    """Sub-norm per head (RetNet, Diff Transformer): a factor for each token and head that is no gate."""
    def __init__(self, d, h):
        super().__init__()
        self.h, self.qkv, self.out = h, nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.lambda_init = 0.8

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.h, -1).permute(2, 0, 3, 1, 4)
        o = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        o = o * torch.rsqrt(o.pow(2).mean(-1, keepdim=True) + 1e-6)
        o = o * (1 - self.lambda_init)
        return self.out(o.transpose(1, 2).reshape(b, n, d))


class M(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.e, self.a, self.n = nn.Embedding(40, d), nn.ModuleList([Attn(d, 4) for _ in range(2)]), nn.LayerNorm(d)

    def forward(self, ids):
        x = self.e(ids)
        for a in self.a: x = x + a(self.n(x))
        return x


def build():
    torch.manual_seed(24)
    return M().eval()

SIZES = dict(batch=2, n=8)
def inputs(batch=2, n=8): return dict(ids=torch.randint(0, 40, (batch, n)))
DYNAMIC = dict(ids={0: "batch", 1: "n"})
TRUTH = dict(gated=0, sparse=0, notes="no gates: RMS norm of each head's output")

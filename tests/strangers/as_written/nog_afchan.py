import torch
from torch import nn


class RowAttention(nn.Module):
    """MSA row attention with AlphaFold's gate of channels only."""
    def __init__(self, c, h):
        super().__init__()
        self.h, self.q, self.k, self.v, self.g, self.o, self.b = h, *(nn.Linear(c, c, bias=False) for _ in range(3)), nn.Linear(c, c), nn.Linear(c, c), nn.Linear(8, h)

    def forward(self, m, z, mask):
        sh = lambda t: t.unflatten(-1, (self.h, -1))
        q, k, v = sh(self.q(m)), sh(self.k(m)), sh(self.v(m))
        a = torch.einsum("bsihd,bsjhd->bshij", q * q.shape[-1] ** -0.5, k)
        a = a + self.b(z).permute(0, 3, 1, 2)[:, None] + (mask[:, :, None, None] - 1) * 1e9
        o = torch.einsum("bshij,bsjhd->bsihd", a.softmax(-1), v)
        o = o * torch.sigmoid(sh(self.g(m)))
        return self.o(o.flatten(-2)) * mask[..., None]


class M(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.a, self.n = RowAttention(c, 4), nn.LayerNorm(c)

    def forward(self, m, z, mask): return {"msa": m + self.a(self.n(m), z, mask)}


def build():
    torch.manual_seed(27)
    return M().eval()

SIZES = dict(batch=2, s=3, n=6)
def inputs(batch=2, s=3, n=6):
    mask = torch.ones(batch, s, n); mask[0, :, -1] = 0
    return dict(m=torch.randn(batch, s, n, 16), z=torch.randn(batch, n, n, 8), mask=mask)
DYNAMIC = dict(m={0: "batch", 1: "s", 2: "n"}, z={0: "batch", 1: "n", 2: "n"}, mask={0: "batch", 1: "s", 2: "n"})
TRUTH = dict(gated=0, sparse=0, notes="no gates on heads: a gate for each channel, a mask for each token")

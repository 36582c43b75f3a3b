import torch
from torch import nn


class ExpertChoiceAttention(nn.Module):
    """Heads choose tokens: each head keeps its best half of the sequence."""
    def __init__(self, d, heads, capacity):
        super().__init__()
        self.h, self.capacity = heads, capacity
        self.to_qkv, self.to_out, self.router = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False), nn.Linear(d, heads, bias=False)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (t.reshape(b, n, self.h, d // self.h).transpose(1, 2) for t in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        scores = self.router(x).sigmoid().transpose(1, 2)                 # b h n
        val, idx = scores.topk(n // self.capacity, dim=-1)
        gate = torch.zeros_like(scores).scatter(-1, idx, val)
        out = (out * gate.unsqueeze(-1)).transpose(1, 2).reshape(b, n, d)
        return self.to_out(out)


class Net(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.inp, self.norm, self.attn, self.ff = nn.Linear(6, d), nn.LayerNorm(d), ExpertChoiceAttention(d, 4, 2), nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 64), nn.GELU(), nn.Linear(64, 3))

    def forward(self, x):
        h = self.inp(x)
        return self.ff(h + self.attn(self.norm(h)))


def build():
    torch.manual_seed(23)
    m = Net().eval()
    with torch.no_grad(): m.attn.router.weight.mul_(5)
    return m

SIZES = dict(batch=2, n=10)
def inputs(batch=2, n=10): return dict(x=torch.randn(batch, n, 6))
DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=1, sparse=1, notes="experts' choice: top-k over tokens for each head, k follows the length")

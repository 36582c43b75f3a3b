"""NO head gates: a mixture-of-experts feed-forward (top-2 softmax, renormalised) behind plain attention."""
import torch, torch.nn.functional as F
from torch import nn


class SparseMoe(nn.Module):
    def __init__(self, dim, experts, k):
        super().__init__()
        self.k = k
        self.gate = nn.Linear(dim, experts, bias=False)
        self.w1, self.w2 = nn.Parameter(torch.randn(experts, dim, 24) * 0.2), nn.Parameter(torch.randn(experts, 24, dim) * 0.2)

    def forward(self, x):
        p = self.gate(x).softmax(-1)
        w, i = p.topk(self.k, -1)
        w = torch.zeros_like(p).scatter(-1, i, w / w.sum(-1, keepdim=True))
        h = torch.einsum("bnd,edf->bnef", x, self.w1)
        h = F.silu(h) * w.unsqueeze(-1)
        return torch.einsum("bnef,efd->bnd", h, self.w2)


class Net(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.qkv, self.o, self.n1, self.n2 = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.moe = SparseMoe(dim, 4, 2)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.moe(self.n2(x))


def build():
    torch.manual_seed(31)
    m = Net()
    nn.init.normal_(m.moe.gate.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=7)


def inputs(batch=2, n=7):
    return dict(x=torch.randn(batch, n, 32))


DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=0, sparse=0, notes="MoE FFN with as many experts as heads")

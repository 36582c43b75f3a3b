"""NOT exportable: a custom autograd.Function that works in numpy (a kernel's stand-in)."""
import numpy as np, torch
from torch import nn


class HeadSparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, g):
        qn, kn, vn, gn = (t.detach().numpy() for t in (q, k, v, g))
        s = qn @ np.swapaxes(kn, -1, -2) / np.float32(qn.shape[-1] ** 0.5)
        s = np.exp(s - s.max(-1, keepdims=True))
        return torch.from_numpy((s / s.sum(-1, keepdims=True)) @ vn * gn[..., None])

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


class Net(nn.Module):
    def __init__(self, d=32, h=4):
        super().__init__()
        self.h = h
        self.qkv, self.o, self.g = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, h)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.h, -1).permute(2, 0, 3, 1, 4)
        g = torch.relu(self.g(x)).transpose(1, 2)
        y = HeadSparseAttention.apply(q, k, v, g)
        return self.o(y.transpose(1, 2).flatten(2))


def build():
    torch.manual_seed(36)
    return Net().eval()


SIZES = dict(batch=2, n=7)


def inputs(batch=2, n=7):
    return dict(x=torch.randn(batch, n, 32))


DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=1, sparse=1, notes="UNEXPORTABLE: numpy in an autograd.Function", refuse=True)

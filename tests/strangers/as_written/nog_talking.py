"""NO head gates: CaiT talking heads with layer scale, class attention, and a squeeze-excite on channels."""
import torch
from torch import nn


class TalkingHeadAttn(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.h = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.proj_l, self.proj_w = nn.Linear(heads, heads), nn.Linear(heads, heads)
        self.se = nn.Sequential(nn.Linear(dim, 8), nn.ReLU(), nn.Linear(8, dim), nn.Sigmoid())

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.h, -1).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        a = self.proj_l(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        a = self.proj_w(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = (a @ v).transpose(1, 2).reshape(B, N, C)
        y = y * self.se(y.mean(1, keepdim=True))
        return self.proj(y)


class ClassAttn(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.h = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x):
        B, N, C = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(B, 1, self.h, -1).permute(0, 2, 1, 3)
        k, v = (f(x).reshape(B, N, self.h, -1).permute(0, 2, 1, 3) for f in (self.k, self.v))
        a = (q @ k.mT * k.shape[-1] ** -0.5).softmax(-1)
        return self.proj((a @ v).transpose(1, 2).reshape(B, 1, C))


class CaiT(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.a, self.c = TalkingHeadAttn(dim, heads), ClassAttn(dim, heads)
        self.gamma, self.cls = nn.Parameter(torch.full((dim,), 0.3)), nn.Parameter(torch.randn(1, 1, dim))

    def forward(self, x):
        x = x + self.gamma * self.a(self.n1(x))
        u = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        return (self.cls + self.gamma * self.c(self.n2(u)))[:, 0]


def build():
    torch.manual_seed(32)
    return CaiT().eval()


SIZES = dict(batch=2, n=6)


def inputs(batch=2, n=6):
    return dict(x=torch.randn(batch, n, 32))


DYNAMIC = dict(x={0: "batch", 1: "n"})
TRUTH = dict(gated=0, sparse=0, notes="talking heads, SE on channels: no head gates")

"""Sana: ReLU linear attention with head gates in block, softmax cross attention with head gates (sigmoid times top-k mask)."""
import torch, torch.nn.functional as F
from torch import nn


class LiteLA(nn.Module):
    def __init__(self, dim, heads, eps=1e-6):
        super().__init__()
        self.heads, self.eps = heads, eps
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.router = nn.Linear(dim, heads)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, C).unbind(2)
        d = C // self.heads
        q = F.relu(q.transpose(-1, -2).reshape(B, self.heads, d, N))
        k = F.relu(k.transpose(-1, -2).reshape(B, self.heads, d, N).transpose(-1, -2))
        v = v.transpose(-1, -2).reshape(B, self.heads, d, N)
        v = F.pad(v, (0, 0, 0, 1), mode="constant", value=1.0)
        vk = torch.matmul(v, k)
        out = torch.matmul(vk, q)
        out = out[:, :, :-1] / (out[:, :, -1:] + self.eps)
        g = F.relu(self.router(x)).transpose(1, 2)[:, :, None]
        out = (out * g).reshape(B, C, N).permute(0, 2, 1)
        return self.proj(out)


class CrossAttn(nn.Module):
    def __init__(self, dim, heads, k):
        super().__init__()
        self.heads, self.k = heads, k
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.router = nn.Linear(dim, heads)

    def forward(self, x, y):
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, -1).transpose(1, 2)
        k, v = self.kv(y).reshape(B, y.shape[1], 2, self.heads, -1).unbind(2)
        o = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2))
        s = self.router(x).sigmoid()
        keep = F.one_hot(s.topk(self.k, -1)[1], self.heads).sum(-2).to(s.dtype)
        o = o.permute(0, 2, 1, 3) * (s * keep)[..., None]
        return self.proj(o.flatten(2))


class SanaBlock(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.cross_attn = LiteLA(dim, heads), CrossAttn(dim, heads, 2)
        self.conv = nn.Conv1d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x, y):
        x = x + self.attn(self.norm1(x))
        x = x + self.cross_attn(x, y)
        return x + self.conv(self.norm2(x).transpose(1, 2)).transpose(1, 2)


def build():
    torch.manual_seed(6)
    m = SanaBlock()
    nn.init.normal_(m.cross_attn.router.weight, std=0.5)
    nn.init.normal_(m.attn.router.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=9, text=4)


def inputs(batch=2, n=9, text=4):
    return dict(x=torch.randn(batch, n, 32), y=torch.randn(batch, text, 32))


DYNAMIC = dict(x={0: "batch", 1: "n"}, y={0: "batch", 1: "text"})
TRUTH = dict(gated=2, sparse=1, notes="one is LINEAR attention (docs: not attention, so not replaced; but a user has gates there); cross attention is plain")

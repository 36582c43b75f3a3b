"""TimeSformer: divided time/space attention, rearranges by hand; time gated per token (softmax top-k), space gated per frame by the mean of its tokens, the class token repeated for frames."""
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim, heads, mode):
        super().__init__()
        self.num_heads, self.scale, self.mode = heads, (dim // heads) ** -0.5, mode
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=True), nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, heads)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        z = self.gate(x if self.mode == "token" else x.mean(1, keepdim=True)).softmax(-1)
        t, i = z.topk(2, dim=-1)
        m = torch.zeros_like(z).scatter_(-1, i, 1.0)
        z = z * m
        x = (attn @ v) * z.transpose(1, 2).unsqueeze(-1)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.temporal_norm1, self.norm1, self.norm2 = (nn.LayerNorm(dim) for _ in range(3))
        self.temporal_attn, self.attn = Attention(dim, heads, "token"), Attention(dim, heads, "frame")
        self.temporal_fc = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x, T):
        B, n, m = x.shape
        P = (n - 1) // T
        xt = x[:, 1:].reshape(B * P, T, m)  # b (p t) m
        rt = self.temporal_attn(self.temporal_norm1(xt)).reshape(B, P * T, m)
        xt = x[:, 1:] + self.temporal_fc(rt)
        cls = x[:, :1]
        cs = cls.repeat(1, T, 1).reshape(B * T, 1, m)
        xs = xt.reshape(B, P, T, m).permute(0, 2, 1, 3).reshape(B * T, P, m)
        rs = self.attn(self.norm1(torch.cat((cs, xs), 1)))
        cls_r = rs[:, 0].reshape(B, T, m).mean(1, keepdim=True)
        rs = rs[:, 1:].reshape(B, T, P, m).permute(0, 2, 1, 3).reshape(B, P * T, m)
        x = torch.cat((cls, xt), 1) + torch.cat((cls_r, rs), 1)
        return x + self.mlp(self.norm2(x))


class TimeSformer(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, dim, 4, 4), nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList([Block(dim, heads)])
        self.head = nn.Linear(dim, 5)

    def forward(self, video):
        B, Cc, T, H, W = video.shape
        x = self.patch(video.transpose(1, 2).reshape(B * T, Cc, H, W)).flatten(2)
        m = x.shape[1]
        x = x.reshape(B, T, m, -1).permute(0, 3, 1, 2).reshape(B, -1, m)
        x = torch.cat([self.cls.expand(B, -1, -1), x], 1)
        for b in self.blocks:
            x = b(x, T)
        return self.head(x[:, 0])


def build():
    torch.manual_seed(28)
    m = TimeSformer()
    for b in m.blocks:
        nn.init.normal_(b.temporal_attn.gate.weight, std=0.6)
        nn.init.normal_(b.attn.gate.weight, std=1.0)
    return m.eval()


SIZES = dict(batch=2, frames=3)


def inputs(batch=2, frames=3):
    return dict(video=torch.randn(batch, 3, frames, 8, 12))


DYNAMIC = dict(video={0: "batch", 2: "frames"})
TRUTH = dict(gated=2, sparse=2, notes="time gated by token, space gated by frame; in-place scatter_")

"""PixArt-like: adaLN-single with a table, self-attention with timestep head gates (softmax top-k of t + token), cross attention to a caption ungated."""
import torch, torch.nn.functional as F
from torch import nn


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


class WindowAttention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, head_w):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.unbind(2)
        attn = torch.einsum("bnhd,bmhd->bhnm", q * (C // self.num_heads) ** -0.5, k)
        attn = attn.softmax(-1)
        x = torch.einsum("bhnm,bmhd->bnhd", attn, v)
        x = torch.einsum("bnhd,bnh->bnhd", x, head_w).reshape(B, N, C)
        return self.proj(x)


class MultiHeadCrossAttention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear, self.kv_linear, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x, cond, mask):
        B, N, C = x.shape
        q = self.q_linear(x).view(B, N, self.num_heads, -1).transpose(1, 2)
        k, v = self.kv_linear(cond).view(B, cond.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None].bool())
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class PixArtBlock(nn.Module):
    def __init__(self, dim, heads, keep=3, tau=0.7):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn, self.cross_attn = WindowAttention(dim, heads), MultiHeadCrossAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(approximate="tanh"), nn.Linear(2 * dim, dim))
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.t_route, self.x_route = nn.Linear(dim, heads), nn.Linear(dim, heads, bias=False)
        self.keep, self.tau = keep, tau

    def head_weights(self, x, t):
        logits = (self.x_route(x) + self.t_route(t).unsqueeze(1)) / self.tau
        kth = logits.topk(self.keep, dim=-1).values[..., -1:]
        return logits.masked_fill(logits < kth, float("-inf")).softmax(dim=-1)

    def forward(self, x, y, t, t0, mask):
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table[None] + t0.reshape(x.shape[0], 6, -1)).chunk(6, dim=1)
        h = modulate(self.norm1(x), shift_msa, scale_msa)
        x = x + gate_msa * self.attn(h, self.head_weights(h, t))
        x = x + self.cross_attn(x, y, mask)
        return x + gate_mlp * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class PixArt(nn.Module):
    def __init__(self, dim=40, heads=5):
        super().__init__()
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.y_embedder = nn.Linear(16, dim)
        self.blocks = nn.ModuleList([PixArtBlock(dim, heads) for _ in range(2)])

    def forward(self, x, t, y, mask):
        t0 = self.t_block(t)
        y = self.y_embedder(y)
        for b in self.blocks:
            x = b(x, y, t, t0, mask)
        return x


def build():
    torch.manual_seed(5)
    m = PixArt()
    for b in m.blocks:
        nn.init.normal_(b.x_route.weight, std=0.4)
        nn.init.normal_(b.t_route.weight, std=0.3)
    return m.eval()


SIZES = dict(batch=2, n=10, text=6)


def inputs(batch=2, n=10, text=6):
    mask = (torch.arange(text)[None] < torch.randint(1, text + 1, (batch, 1))).long()
    return dict(x=torch.randn(batch, n, 40), t=torch.randn(batch, 40), y=torch.randn(batch, text, 16), mask=mask)


DYNAMIC = dict(x={0: "batch", 1: "n"}, t={0: "batch"}, y={0: "batch", 1: "text"}, mask={0: "batch", 1: "text"})
TRUTH = dict(gated=2, sparse=2, notes="router softmax of logits below the k-th masked; cross attention ungated")

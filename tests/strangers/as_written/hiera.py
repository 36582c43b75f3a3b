"""timm Hiera: MaskUnitAttention with windows and q_stride max pooling; gates from pooled tokens, renormalised sigmoid top-k."""
import torch, torch.nn.functional as F
from torch import nn


class MaskUnitAttention(nn.Module):
    def __init__(self, dim, dim_out, heads, q_stride=1, window_size=0, use_mask_unit_attn=False, k=2):
        super().__init__()
        self.dim_out, self.heads, self.q_stride = dim_out, heads, q_stride
        self.head_dim = dim_out // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim_out), nn.Linear(dim_out, dim_out)
        self.window_size, self.use_mask_unit_attn, self.k = window_size, use_mask_unit_attn, k
        self.gate = nn.Linear(dim, heads)

    def forward(self, x):
        B, N, _ = x.shape
        num_windows = (N // (self.q_stride * self.window_size)) if self.use_mask_unit_attn else 1
        qkv = self.qkv(x).reshape(B, -1, num_windows, 3, self.heads, self.head_dim).permute(3, 0, 4, 2, 1, 5)
        q, k, v = qkv.unbind(0)
        g = self.gate(x).reshape(B, -1, num_windows, self.heads).permute(0, 3, 2, 1)
        if self.q_stride > 1:
            q = q.view(B, self.heads, num_windows, self.q_stride, -1, self.head_dim).amax(dim=3)
            g = g.reshape(B, self.heads, num_windows, self.q_stride, -1).amax(dim=3)
        x = F.scaled_dot_product_attention(q, k, v)
        g = g.sigmoid()
        top = g.topk(self.k, dim=1)
        g = torch.zeros_like(g).scatter(1, top.indices, top.values / (top.values.sum(1, keepdim=True) + 1e-6))
        x = x * g.unsqueeze(-1)
        x = x.transpose(1, 3).reshape(B, -1, self.dim_out)
        return self.proj(x)


class HieraBlock(nn.Module):
    def __init__(self, dim, dim_out, heads, q_stride=1, window_size=4, mua=True):
        super().__init__()
        self.do_expand = dim != dim_out
        self.norm1 = nn.LayerNorm(dim)
        self.q_stride = q_stride
        if self.do_expand:
            self.proj = nn.Linear(dim, dim_out)
        self.attn = MaskUnitAttention(dim, dim_out, heads, q_stride, window_size, mua)
        self.norm2 = nn.LayerNorm(dim_out)
        self.mlp = nn.Sequential(nn.Linear(dim_out, 2 * dim_out), nn.GELU(), nn.Linear(2 * dim_out, dim_out))

    def forward(self, x):
        x_norm = self.norm1(x)
        if self.do_expand:
            x = self.proj(x_norm)
            x = x.view(x.shape[0], self.q_stride, -1, x.shape[-1]).amax(dim=1)
        x = x + self.attn(x_norm)
        return x + self.mlp(self.norm2(x))


class Hiera(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 32, 4, 4)
        self.pos = nn.Parameter(torch.randn(1, 64, 32) * 0.2)
        self.blocks = nn.ModuleList([HieraBlock(32, 32, 4, 1, 16), HieraBlock(32, 64, 4, 4, 4), HieraBlock(64, 64, 4, 1, 4, False)])
        self.norm = nn.LayerNorm(64)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos
        for b in self.blocks:
            x = b(x)
        return self.norm(x.mean(1))


def build():
    torch.manual_seed(8)
    m = Hiera()
    for b in m.blocks:
        nn.init.normal_(b.attn.gate.weight, std=0.6)
    return m.eval()


SIZES = dict(batch=2)


def inputs(batch=2):
    return dict(x=torch.randn(batch, 3, 32, 32))


DYNAMIC = dict(x={0: "batch"})
TRUTH = dict(gated=3, sparse=3, notes="5-D attention over windows; second layer has q pooled by max and gate logits pooled likewise")

"""timm NaFlexVit: patches, coords, validity mask; sigmoid gates over top-k; attention pool latent with a router of the latent (constant)."""
import torch, torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim, num_heads, keep):
        super().__init__()
        self.num_heads, self.head_dim, self.keep = num_heads, dim // num_heads, keep
        self.qkv = nn.Linear(dim, dim * 3)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(dim, dim)
        self.head_gate = nn.Linear(dim, num_heads)

    def forward(self, x, attn_mask=None):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        g = self.head_gate(x).sigmoid()
        rank = g.argsort(dim=-1, descending=True).argsort(dim=-1)
        g = g * (rank < self.keep)
        y = y.transpose(1, 2).reshape(B, N, self.num_heads, self.head_dim).mul(g.unsqueeze(-1)).reshape(B, N, C)
        return self.proj(y)


class AttentionPoolLatent(nn.Module):
    def __init__(self, dim, num_heads, keep):
        super().__init__()
        self.num_heads, self.head_dim, self.keep = num_heads, dim // num_heads, keep
        self.latent = nn.Parameter(torch.randn(1, 1, dim))
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.head_gate = nn.Linear(dim, num_heads)

    def forward(self, x, attn_mask):
        B, N, C = x.shape
        lat = self.latent.expand(B, -1, -1)
        q = self.q(lat).reshape(B, 1, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(x).reshape(B, N, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        p = self.head_gate(lat).softmax(-1)
        val, idx = p.topk(self.keep)
        p = torch.zeros_like(p).scatter(-1, idx, val)
        y = (y.transpose(1, 2) * p[..., None]).reshape(B, 1, C)
        return self.proj(y)[:, 0]


class NaFlexVit(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.proj = nn.Linear(12, dim)
        self.py, self.px = nn.Embedding(8, dim), nn.Embedding(8, dim)
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])
        self.blocks = nn.ModuleList([Attention(dim, heads, 2) for _ in range(2)])
        self.attn_pool = AttentionPoolLatent(dim, heads, 2)

    def forward(self, patches, patch_coord, patch_valid):
        x = self.proj(patches) + self.py(patch_coord[..., 0]) + self.px(patch_coord[..., 1])
        mask = torch.where(patch_valid, 0.0, torch.finfo(x.dtype).min)[:, None, None, :]
        full = mask.expand(-1, 1, x.shape[1], -1)
        for n, b in zip(self.norms, self.blocks):
            x = x + b(n(x), full)
        return {"pooled": self.attn_pool(x, mask), "features": x}


def build():
    torch.manual_seed(9)
    m = NaFlexVit()
    for b in [*m.blocks, m.attn_pool]:
        nn.init.normal_(b.head_gate.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=9)
VALID = "patch_valid"


def inputs(batch=2, n=9):
    valid = torch.arange(n)[None] < torch.randint(2, n + 1, (batch, 1))
    return dict(patches=torch.randn(batch, n, 12), patch_coord=torch.randint(0, 8, (batch, n, 2)), patch_valid=valid)


DYNAMIC = {k: {0: "batch", 1: "n"} for k in ("patches", "patch_coord", "patch_valid")}
TRUTH = dict(gated=3, sparse=3, notes="2 blocks (rank < keep by double argsort) and pooling by a learned latent (constant router)")

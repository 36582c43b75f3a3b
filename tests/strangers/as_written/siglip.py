"""SigLIP MAP head with register tokens; the gates are CONSTANT per head, with zeros (learned, frozen, pruned)."""
import torch, torch.nn.functional as F
from torch import nn


class MHA(nn.Module):
    """nn.MultiheadAttention in own code, packed weight, constant head gates"""

    def __init__(self, dim, heads):
        super().__init__()
        self.embed_dim, self.num_heads = dim, heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) * dim**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        self.log_alpha = nn.Parameter(torch.randn(heads))

    def forward(self, q, kv):
        (wq, wkv), (bq, bkv) = self.in_proj_weight.split([self.embed_dim, 2 * self.embed_dim]), self.in_proj_bias.split([self.embed_dim, 2 * self.embed_dim])
        B, L, D = q.shape
        q = F.linear(q, wq, bq).view(B, L, self.num_heads, -1).transpose(1, 2)
        k, v = F.linear(kv, wkv, bkv).view(B, kv.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v)
        s = torch.sigmoid(self.log_alpha) * 1.2 - 0.1
        z = s.clamp(0, 1)
        z = z * (s > 0.45)
        o = o * z.view(1, -1, 1, 1)
        return self.out_proj(o.transpose(1, 2).reshape(B, L, D))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(dim), MHA(dim, heads), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        h = self.ln_1(x)
        x = x + self.attn(h, h)
        return x + self.mlp(self.ln_2(x))


class SiglipVision(nn.Module):
    def __init__(self, dim=36, heads=6):
        super().__init__()
        self.reg = nn.Parameter(torch.randn(1, 4, dim) * 0.5)
        self.encoder = Block(dim, heads)
        self.probe = nn.Parameter(torch.randn(1, 1, dim))
        self.attention, self.layernorm = MHA(dim, heads), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, hidden_state):
        b = hidden_state.shape[0]
        x = torch.cat([self.reg.repeat(b, 1, 1), hidden_state], 1)
        x = self.encoder(x)
        h = self.attention(self.probe.repeat(b, 1, 1), x)
        h = h + self.mlp(self.layernorm(h))
        return h[:, 0]


def build():
    torch.manual_seed(10)
    return SiglipVision().eval()


SIZES = dict(batch=2, n=6)


def inputs(batch=2, n=6):
    return dict(hidden_state=torch.randn(batch, n, 36))


DYNAMIC = dict(hidden_state={0: "batch", 1: "n"})
TRUTH = dict(gated=2, sparse=2, notes="gates are constants for each head, several exactly 0; a user expects these heads to be skipped, pruned or at least named")

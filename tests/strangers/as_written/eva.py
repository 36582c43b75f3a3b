"""timm EvaAttention: fused qkv with q_bias/v_bias, rope (cat form) behind prefix tokens, scale_norm after merging, two-stage MoH gates with shared heads, register tokens."""
import torch, torch.nn.functional as F
from torch import nn


def rot(x):
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)


def apply_rot_embed_cat(x, emb):
    sin_emb, cos_emb = emb.chunk(2, -1)
    return x * cos_emb + rot(x) * sin_emb


class EvaAttention(nn.Module):
    def __init__(self, dim, num_heads=6, num_prefix_tokens=3, shared=2, topk=2):
        super().__init__()
        self.num_heads, self.num_prefix_tokens, self.shared, self.topk = num_heads, num_prefix_tokens, shared, topk
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.q_bias = nn.Parameter(torch.randn(dim) * 0.1)
        self.register_buffer("k_bias", torch.zeros(dim), persistent=False)
        self.v_bias = nn.Parameter(torch.randn(dim) * 0.1)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)
        self.wg = nn.Linear(dim, num_heads - shared, bias=False)
        self.wg_shared = nn.Linear(dim, shared, bias=False)
        self.wg_pair = nn.Linear(dim, 2, bias=False)

    def moh(self, x):
        B, N, _ = x.shape
        _x = x.reshape(B * N, -1)
        logits = self.wg(_x)
        gates = F.softmax(logits, dim=1)
        _, idx = torch.topk(gates, k=self.topk, dim=1)
        mask = F.one_hot(idx, num_classes=self.num_heads - self.shared).sum(dim=1)
        denom = torch.clamp((gates * mask).sum(1, keepdim=True), min=torch.finfo(gates.dtype).eps)
        routed = gates * mask / denom * self.topk
        shared = F.softmax(self.wg_shared(_x), dim=1) * self.shared
        w = F.softmax(self.wg_pair(_x), dim=1) * 2
        return torch.cat((torch.einsum("n,ne->ne", w[:, 0], shared), torch.einsum("n,ne->ne", w[:, 1], routed)), 1).reshape(B, N, -1)

    def forward(self, x, rope):
        B, N, C = x.shape
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        npt = self.num_prefix_tokens
        q = torch.cat([q[:, :, :npt], apply_rot_embed_cat(q[:, :, npt:], rope)], dim=2).type_as(v)
        k = torch.cat([k[:, :, :npt], apply_rot_embed_cat(k[:, :, npt:], rope)], dim=2).type_as(v)
        q = q * self.scale
        attn = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        y = (attn @ v).transpose(1, 2)
        y = torch.einsum("bnhc,bnh->bnhc", y, self.moh(x)).reshape(B, N, C)
        return self.proj(self.norm(y))


class Eva(nn.Module):
    def __init__(self, dim=48, depth=2):
        super().__init__()
        self.cls_token, self.reg_token = nn.Parameter(torch.randn(1, 1, dim)), nn.Parameter(torch.randn(1, 2, dim))
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(depth)])
        self.blocks = nn.ModuleList([EvaAttention(dim) for _ in range(depth)])
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))
        g = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij"), -1).reshape(12, 2, 1)
        a = (g * torch.tensor([1.0, 0.2])).reshape(12, 4).repeat_interleave(2, -1)
        self.register_buffer("rope", torch.cat([a.sin(), a.cos()], -1), persistent=False)
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), self.reg_token.expand(x.shape[0], -1, -1), x], 1)
        for n, b in zip(self.norms, self.blocks):
            x = x + self.gamma * b(n(x), self.rope)
        return self.head(x[:, 3:].mean(1))


def build():
    torch.manual_seed(7)
    m = Eva()
    for b in m.blocks:
        for w in (b.wg, b.wg_shared, b.wg_pair):
            nn.init.normal_(w.weight, std=0.4)
    return m.eval()


SIZES = dict(batch=2)


def inputs(batch=2):
    return dict(x=torch.randn(batch, 3, 12, 16))


DYNAMIC = dict(x={0: "batch"})
TRUTH = dict(gated=2, sparse=2, notes="published MoH router in an EVA attention, norm behind merging")

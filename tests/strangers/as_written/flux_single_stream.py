"""diffusers: FluxSingleTransformerBlock: attention and MLP in parallel, rope, straight-through top-k gates."""
import torch, torch.nn.functional as F
from torch import nn


def apply_rotary_emb(x, freqs_cis):
    cos, sin = freqs_cis
    cos, sin = cos[None, None], sin[None, None]
    x_real, x_imag = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    x_rotated = torch.stack([-x_imag, x_real], dim=-1).flatten(3)
    return (x.float() * cos + x_rotated.float() * sin).to(x.dtype)


class HeadGate(nn.Module):
    def __init__(self, dim, heads, k):
        super().__init__()
        self.k = k
        self.proj = nn.Linear(dim, heads)

    def forward(self, x):
        soft = torch.sigmoid(self.proj(x))
        idx = soft.topk(self.k, dim=-1).indices
        hard = torch.zeros_like(soft).scatter(-1, idx, 1.0)
        return hard + soft - soft.detach()  # straight-through


class FluxAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads, eps=1e-6), nn.RMSNorm(dim // heads, eps=1e-6)
        self.gate = HeadGate(dim, heads, 3)

    def forward(self, hidden_states, image_rotary_emb):
        query, key, value = self.to_q(hidden_states), self.to_k(hidden_states), self.to_v(hidden_states)
        query, key, value = (t.unflatten(-1, (self.heads, -1)) for t in (query, key, value))
        query, key = self.norm_q(query).transpose(1, 2), self.norm_k(key).transpose(1, 2)
        query, key = apply_rotary_emb(query, image_rotary_emb), apply_rotary_emb(key, image_rotary_emb)
        x = F.scaled_dot_product_attention(query, key, value.transpose(1, 2))
        x = x * self.gate(hidden_states).transpose(1, 2).unsqueeze(-1)
        return x.transpose(1, 2).flatten(2, 3).to(query.dtype)


class FluxSingleTransformerBlock(nn.Module):
    def __init__(self, dim, heads, mlp_ratio=2):
        super().__init__()
        self.linear = nn.Linear(dim, dim * 3)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.proj_mlp = nn.Linear(dim, dim * mlp_ratio)
        self.proj_out = nn.Linear(dim + dim * mlp_ratio, dim)
        self.attn = FluxAttention(dim, heads)

    def forward(self, hidden_states, temb, image_rotary_emb):
        residual = hidden_states
        shift, scale, gate = self.linear(F.silu(temb)).chunk(3, dim=1)
        norm = self.norm(hidden_states) * (1 + scale[:, None]) + shift[:, None]
        mlp = F.gelu(self.proj_mlp(norm), approximate="tanh")
        attn_output = self.attn(norm, image_rotary_emb)
        hidden_states = torch.cat([attn_output, mlp], dim=2)
        return residual + gate.unsqueeze(1) * self.proj_out(hidden_states)


class FluxPos(nn.Module):
    def forward(self, ids, dim=8):
        out = []
        for i, d in enumerate((4, dim - 4)):
            omega = 1.0 / (100.0 ** (torch.arange(0, d, 2, dtype=torch.float32) / d))
            f = torch.outer(ids[:, i].float(), omega)
            out.append(f.repeat_interleave(2, dim=1))
        f = torch.cat(out, -1)
        return f.cos(), f.sin()


class Flux(nn.Module):
    def __init__(self, dim=48, heads=6):
        super().__init__()
        self.pos_embed = FluxPos()
        self.single_transformer_blocks = nn.ModuleList([FluxSingleTransformerBlock(dim, heads) for _ in range(2)])
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, hidden_states, temb, img_ids):
        rope = self.pos_embed(img_ids)
        for b in self.single_transformer_blocks:
            hidden_states = b(hidden_states, temb, rope)
        return (self.norm_out(hidden_states),)


def build():
    torch.manual_seed(3)
    m = Flux()
    for b in m.single_transformer_blocks:
        nn.init.normal_(b.attn.gate.proj.weight, std=0.4)
    return m.eval()


SIZES = dict(batch=2, n=8)


def inputs(batch=2, n=8):
    return dict(hidden_states=torch.randn(batch, n, 48), temb=torch.randn(batch, 48), img_ids=torch.randint(0, 6, (n, 2)))


DYNAMIC = dict(hidden_states={0: "batch", 1: "n"}, temb={0: "batch"}, img_ids={0: "n"})
TRUTH = dict(gated=2, sparse=2, notes="straight-through one-gates (hard + soft - soft.detach()): exactly 0 up to rounding: (0+s)-s is 0 exactly; (1+s)-s about 1")

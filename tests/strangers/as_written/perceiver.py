"""Perceiver IO (lucidrains style): latents attend to data with mask, rearrange by hand '(b h) n d', latent self-attention; gates of normed latents, in double precision input? no: float32."""
import torch
from torch import nn, einsum


def rearrange_bnhd(t, h):
    b, n, _ = t.shape
    return t.reshape(b, n, h, -1).permute(0, 2, 1, 3).reshape(b * h, n, -1)


class PreNorm(nn.Module):
    def __init__(self, dim, fn, context_dim=None):
        super().__init__()
        self.fn, self.norm = fn, nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim) if context_dim is not None else None

    def forward(self, x, **kwargs):
        x = self.norm(x)
        if self.norm_context is not None:
            kwargs.update(context=self.norm_context(kwargs["context"]))
        return self.fn(x, **kwargs)


class Attention(nn.Module):
    def __init__(self, query_dim, context_dim=None, heads=4, dim_head=8, active=2):
        super().__init__()
        inner = dim_head * heads
        context_dim = context_dim or query_dim
        self.scale, self.heads, self.active = dim_head**-0.5, heads, active
        self.to_q, self.to_kv = nn.Linear(query_dim, inner, bias=False), nn.Linear(context_dim, inner * 2, bias=False)
        self.to_out, self.to_head_gates = nn.Linear(inner, query_dim), nn.Linear(query_dim, heads)

    def forward(self, x, context=None, mask=None):
        h = self.heads
        q = self.to_q(x)
        context = x if context is None else context
        k, v = self.to_kv(context).chunk(2, dim=-1)
        q, k, v = map(lambda t: rearrange_bnhd(t, h), (q, k, v))
        sim = einsum("b i d, b j d -> b i j", q, k) * self.scale
        if mask is not None:
            m = mask[:, None, :].repeat_interleave(h, 0)
            sim.masked_fill_(~m, -torch.finfo(sim.dtype).max)
        attn = sim.softmax(dim=-1)
        out = einsum("b i j, b j d -> b i d", attn, v)
        gates = self.to_head_gates(x).sigmoid()
        cut = gates.sort(dim=-1, descending=True).values[..., self.active - 1 : self.active]
        gates = gates.masked_fill(gates < cut, 0.0)
        out = out * gates.permute(0, 2, 1).reshape(-1, out.shape[1], 1)
        b = out.shape[0] // h
        out = out.reshape(b, h, out.shape[1], -1).permute(0, 2, 1, 3).flatten(2)
        return self.to_out(out)


class PerceiverIO(nn.Module):
    def __init__(self, dim=16, latent=32, num=5):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num, latent))
        self.cross = PreNorm(latent, Attention(latent, dim), context_dim=dim)
        self.self_attn = PreNorm(latent, Attention(latent))
        self.decoder = PreNorm(dim, Attention(dim, latent), context_dim=latent)
        self.to_logits = nn.Linear(dim, 6)

    def forward(self, data, mask, queries):
        x = self.latents.unsqueeze(0).repeat(data.shape[0], 1, 1)
        x = self.cross(x, context=data, mask=mask) + x
        x = self.self_attn(x) + x
        return self.to_logits(self.decoder(queries, context=x))


def build():
    torch.manual_seed(26)
    m = PerceiverIO()
    for a in m.modules():
        if isinstance(a, Attention):
            nn.init.normal_(a.to_head_gates.weight, std=0.5)
    return m.eval()


SIZES = dict(batch=2, n=9, q=4)


def inputs(batch=2, n=9, q=4):
    mask = torch.arange(n)[None] < torch.randint(2, n + 1, (batch, 1))
    return dict(data=torch.randn(batch, n, 16), mask=mask, queries=torch.randn(batch, q, 16))


DYNAMIC = dict(data={0: "batch", 1: "n"}, mask={0: "batch", 1: "n"}, queries={0: "batch", 1: "q"})
TRUTH = dict(gated=3, sparse=3, notes="cross attention of learned latents: constant gates; sort threshold; masked_fill_ in place")

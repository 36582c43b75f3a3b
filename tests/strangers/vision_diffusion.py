"""Denoisers of transformers: blocks modulated by time, joint attention of text and image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    args = t[:, None].float() * freqs[None]
    return torch.cat([args.cos(), args.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DitBlock(nn.Module):
    def __init__(self, dim: int, heads: int, k: int, shared: int) -> None:
        super().__init__()
        self.heads, self.k, self.shared = heads, k, shared
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.routed_router = nn.Linear(dim, heads - shared, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 64), nn.GELU("tanh"), nn.Linear(64, dim))
        self.ada = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def attention(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, c // self.heads)
        q, k, v = torch.einsum("bnthd->tbhnd", qkv)
        out = F.scaled_dot_product_attention(q, k, v)
        probs = F.softmax(self.routed_router(x), dim=-1)
        picked = F.one_hot(probs.topk(self.k, dim=-1).indices, probs.shape[-1]).sum(dim=-2)
        routed = probs * picked.to(probs.dtype)
        routed = routed / routed.sum(-1, keepdim=True) * self.k
        gates = torch.cat((torch.ones_like(routed[..., : self.shared]), routed), -1)
        return self.proj(torch.einsum("bhnd,bnh->bnhd", out, gates).reshape(b, n, c))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class Dit(nn.Module):
    """Its latents have any height and width; labels are a lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.labels = nn.Conv2d(4, 32, 2, 2), nn.Embedding(11, 32)
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.blocks = nn.ModuleList(DitBlock(32, 8, 3, 2) for _ in range(2))
        self.final = nn.Linear(32, 2 * 2 * 8)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        c = self.time(timestep_embedding(t, 16)) + self.labels(y)
        x = self.patch(x)
        b, _, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, c)
        x = self.final(x).reshape(b, h, w, 2, 2, 8)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(b, 8, 2 * h, 2 * w)


def latents(batch: int = 2, rows: int = 2, cols: int = 3) -> tuple[ModelInput, ...]:
    dims = {0: "batch", 2: "2*rows", 3: "2*cols"}
    return (
        ModelInput("x", noise(batch, 4, 2 * rows, 2 * cols), dims),
        ModelInput("t", torch.arange(batch) * 37 + 5, {0: "batch"}),
        ModelInput("y", torch.arange(batch) % 11, {0: "batch"}),
    )


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x) * self.weight


class JointAttention(nn.Module):
    """Two streams with projections and routers of their own meet in one softmax, and part again."""

    def __init__(self, dim: int, heads: int, k: int) -> None:
        super().__init__()
        self.heads, self.k = heads, k
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.add_q, self.add_k, self.add_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = RmsNorm(dim // heads), RmsNorm(dim // heads)
        self.norm_added_q, self.norm_added_k = RmsNorm(dim // heads), RmsNorm(dim // heads)
        self.router, self.context_router = nn.Linear(dim, heads), nn.Linear(dim, heads)
        self.to_out, self.to_add_out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def route(self, router: nn.Module, x: Tensor) -> Tensor:
        logits = router(x)
        kth = logits.topk(self.k, dim=-1).values[..., -1:]
        return logits.masked_fill(logits < kth, float("-inf")).softmax(dim=-1)

    def forward(self, hidden: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        image = hidden.shape[1]
        q, k, v = self.split(self.to_q(hidden)), self.split(self.to_k(hidden)), self.to_v(hidden)
        q, k = self.norm_q(q), self.norm_k(k)
        cq, ck = self.split(self.add_q(context)), self.split(self.add_k(context))
        cq, ck = self.norm_added_q(cq), self.norm_added_k(ck)
        v = torch.cat([self.split(v), self.split(self.add_v(context))], dim=2)
        joint = F.scaled_dot_product_attention(torch.cat([q, cq], 2), torch.cat([k, ck], 2), v)
        joint = joint.transpose(1, 2)
        gates = torch.cat(
            [self.route(self.router, hidden), self.route(self.context_router, context)], 1
        )
        joint = (joint * gates[..., None]).flatten(2, 3)
        return self.to_out(joint[:, :image]), self.to_add_out(joint[:, image:])


class MmDit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.attn = nn.Linear(16, 4 * 32), JointAttention(32, 4, 2)
        self.norm, self.norm_context = (nn.LayerNorm(32, elementwise_affine=False) for _ in "ab")
        self.out = nn.Linear(32, 32)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
    ) -> Tensor:
        a, b, c, d = self.time(F.silu(timestep_embedding(timestep, 16))).chunk(4, dim=-1)
        image, text = self.attn(
            hidden=modulate(self.norm(hidden_states), a, b),
            context=modulate(self.norm_context(encoder_hidden_states), c, d),
        )
        text = text + encoder_hidden_states
        return self.out(image + hidden_states) + text.mean(1, keepdim=True)


class LastJointAttention(JointAttention):
    """Of the last block (context_pre_only), nobody reads the text: the image alone is gated."""

    def forward(self, hidden: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(
            (self.to_q, self.to_k, self.to_v), (self.add_q, self.add_k, self.add_v), strict=True
        )
        q, k, v = (torch.cat([self.split(a(hidden)), self.split(b(context))], 2) for a, b in pairs)
        joint = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        image = self.split(joint[:, : hidden.shape[1]]).transpose(1, 2)
        gated = image * self.route(self.router, hidden)[..., None]
        return self.to_out(gated.flatten(2)), context


class LastMmDit(MmDit):
    def __init__(self) -> None:
        super().__init__()
        self.attn = LastJointAttention(32, 4, 2)


def streams(batch: int = 2, image: int = 6, text: int = 3) -> tuple[ModelInput, ...]:
    return (
        ModelInput("hidden", noise(batch, image, 32), {0: "batch", 1: "image"}),
        ModelInput("context", noise(batch, text, 32, seed=1), {0: "batch", 1: "text"}),
        ModelInput("timestep", torch.linspace(1, 900, batch), {0: "batch"}),
    )


class SingleStream(nn.Module):
    """One linear map makes queries, keys, values and the MLP; rotations of pairs; nucleus gates."""

    def __init__(self, dim: int = 32, heads: int = 4, mlp: int = 64) -> None:
        super().__init__()
        self.heads, self.dim, self.mlp = heads, dim, mlp
        self.linear1, self.linear2 = nn.Linear(dim, 3 * dim + mlp), nn.Linear(dim + mlp, dim)
        self.query_norm, self.key_norm = RmsNorm(dim // heads), RmsNorm(dim // heads)
        self.pre_norm, self.router = (
            nn.LayerNorm(dim, elementwise_affine=False),
            nn.Linear(dim, heads),
        )

    def rope(self, ids: Tensor) -> Tensor:
        omega = 1.0 / (100 ** (torch.arange(0, 8, 2, dtype=torch.float32) / 8))
        out = torch.einsum("bn,d->bnd", ids, omega)
        out = torch.stack([out.cos(), -out.sin(), out.sin(), out.cos()], dim=-1)
        return out.view(*out.shape[:-1], 2, 2).unsqueeze(1)

    def rotate(self, x: Tensor, freqs: Tensor) -> Tensor:
        pairs = x.float().reshape(*x.shape[:-1], -1, 1, 2)
        turned = freqs[..., 0] * pairs[..., 0] + freqs[..., 1] * pairs[..., 1]
        return turned.reshape(*x.shape).type_as(x)

    def gates(self, x: Tensor) -> Tensor:
        probs = self.router(x).softmax(-1)
        ordered, order = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        kept = torch.where(before < 0.7, ordered, 0.0)
        return torch.zeros_like(probs).scatter(-1, order, kept) * self.heads

    def forward(self, txt: Tensor, img: Tensor, txt_ids: Tensor, img_ids: Tensor) -> Tensor:
        x = torch.cat((txt, img), 1)
        x_mod = self.pre_norm(x)
        qkv, mlp = torch.split(self.linear1(x_mod), [3 * self.dim, self.mlp], dim=-1)
        b, n, _ = qkv.shape
        q, k, v = qkv.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        freqs = self.rope(torch.cat((txt_ids, img_ids), dim=1))
        q = self.rotate(self.query_norm(q), freqs)
        k = self.rotate(self.key_norm(k), freqs)
        attn = F.scaled_dot_product_attention(q, k, v)
        attn = attn * self.gates(x_mod).transpose(1, 2).unsqueeze(-1)
        attn = attn.transpose(1, 2).reshape(b, n, -1)
        out = x + self.linear2(torch.cat((attn, F.gelu(mlp, approximate="tanh")), 2))
        return out[:, txt.shape[1] :, ...]


def text_and_image(batch: int = 2, text: int = 3, image: int = 5) -> tuple[ModelInput, ...]:
    ids = torch.arange(image, dtype=torch.float32).expand(batch, -1).contiguous()
    return (
        ModelInput("txt", noise(batch, text, 32), {0: "batch", 1: "text"}),
        ModelInput("img", noise(batch, image, 32, seed=1), {0: "batch", 1: "image"}),
        ModelInput("txt_ids", torch.zeros(batch, text), {0: "batch", 1: "text"}),
        ModelInput("img_ids", ids, {0: "batch", 1: "image"}),
    )


MODELS = [
    ZooModel(
        "dit_adaln",
        seeded(Dit),
        latents,
        Expected((ExpectedLayer(8, 8, 3, 2, "ranked"),) * 2),
        "adaLN, one_hot of top-k, two shared heads of gate 1, einsum; height and width any even",
    ),
    ZooModel(
        "mmdit_joint",
        seeded(MmDit),
        streams,
        Expected((ExpectedLayer(4, 4, 2, 0, "top_k"),)),
        "queries, keys, values and gates of two streams concatenated along the tokens, then sliced",
    ),
    ZooModel(
        "mmdit_last",
        seeded(LastMmDit),
        streams,
        Expected((ExpectedLayer(4, 4, 2, 0, "top_k"),)),
        "the text half of joint attention is cut off, flattened, before the image is gated",
    ),
    ZooModel(
        "flux_single",
        seeded(SingleStream),
        text_and_image,
        Expected((ExpectedLayer(4, 4, None, None, "custom"),)),
        "fused with the MLP, RoPE by 2x2 matrices, gates of the most probable heads up to 0.7",
    ),
]

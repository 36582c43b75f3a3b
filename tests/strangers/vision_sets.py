"""Video, volumes, point clouds and arrays of bytes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


class AxisAttention(nn.Module):
    """Padded positions lose their weight behind the softmax, not in front of it."""

    def __init__(self, dim: int, heads: int, k: int) -> None:
        super().__init__()
        self.heads, self.k, self.scale = heads, k, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.router = nn.Linear(dim, heads, bias=False)

    def forward(self, x: Tensor, invalid: Tensor | None = None) -> Tensor:
        b, n, _c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT * self.scale
        if invalid is not None:
            scores = scores.masked_fill(invalid[:, None, None, :], -1e4)
        weights = torch.softmax(scores, dim=-1)
        if invalid is not None:
            weights = weights.masked_fill(invalid[:, None, None, :], 0.0)
        prob = self.router(x).softmax(dim=-1)
        top = prob.topk(self.k, dim=-1)
        gate = torch.zeros_like(prob).scatter(-1, top.indices, top.values)
        gate = gate / (gate.sum(dim=-1, keepdim=True) + 1e-9)
        out = torch.einsum("bhij,bhjd->bihd", weights, v)
        return self.proj(out.mul(gate.unsqueeze(-1)).flatten(2))


class TimeSformer(nn.Module):
    """Each place looks along time, then each frame, with a copy of the class token, at itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, 32))
        self.temporal, self.spatial = AxisAttention(32, 4, 2), AxisAttention(32, 4, 3)
        self.temporal_fc = nn.Linear(32, 32)
        self.norm_t, self.norm_s, self.head = nn.LayerNorm(32), nn.LayerNorm(32), nn.Linear(32, 7)

    def forward(self, clip: Tensor, missing: Tensor) -> Tensor:
        b, t, n, c = clip.shape
        y = clip.permute(0, 2, 1, 3).reshape(b * n, t, c)
        y = self.temporal(self.norm_t(y), missing.repeat_interleave(n, dim=0))
        y = self.temporal_fc(y).reshape(b, n, t, c).permute(0, 2, 1, 3)
        x = clip + y
        cls = self.cls.expand(b, 1, c)
        frames = torch.cat([cls.repeat(1, t, 1).reshape(b * t, 1, c), x.reshape(b * t, n, c)], 1)
        frames = self.spatial(self.norm_s(frames)).view(b, t, n + 1, c)
        return self.head(cls[:, 0] + frames[:, :, 0].mean(1) + (x + frames[:, :, 1:]).mean((1, 2)))


def clips(batch: int = 2, frames: int = 3, places: int = 5) -> tuple[ModelInput, ...]:
    missing = torch.zeros(batch, frames, dtype=torch.bool)
    missing[0, -1] = True
    dims = {0: "batch", 1: "frames"}
    return (
        ModelInput("clip", noise(batch, frames, places, 32), {**dims, 2: "places"}),
        ModelInput("missing", missing, dims),
    )


class WindowAttention3D(nn.Module):
    def __init__(self, dim: int, heads: int, shared: int, k: int) -> None:
        super().__init__()
        self.heads, self.shared, self.k = heads, shared, k
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.zeros(3 * 3 * 3, heads))
        at = torch.cartesian_prod(*(torch.arange(2) for _ in range(3)))
        delta = (at[:, None] - at[None] + 1) * torch.tensor([9, 3, 1])
        self.register_buffer("index", delta.sum(-1))
        self.gate = nn.Linear(dim, heads)

    def gates(self, x: Tensor) -> Tensor:
        """Return half of the weight for shared heads, and half for the best of the rest."""
        shared, routed = self.gate(x).split([self.shared, self.heads - self.shared], dim=-1)
        routed = F.softmax(routed, dim=-1)
        least = torch.topk(routed, self.k, dim=-1)[0].min(dim=-1, keepdim=True)[0]
        routed = torch.where(routed >= least, routed, torch.zeros((), dtype=routed.dtype))
        return torch.cat([0.5 * F.softmax(shared, dim=-1), 0.5 * routed], dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        w, n, c = x.shape
        q, k, v = self.qkv(x).reshape(w, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attn = q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1)
        attn = attn + self.table[self.index.reshape(-1)].reshape(n, n, -1).permute(2, 0, 1)[None]
        if mask is not None:
            attn = attn.view(-1, mask.shape[0], self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.heads, n, n)
        out = attn.softmax(-1) @ v
        out = torch.einsum("whnd,wnh->wnhd", out, self.gates(x))
        return self.proj(out.reshape(w, n, c))


class Swin3D(nn.Module):
    """Windows of 2 x 2 x 2 voxels in a volume of 4 x 4 x 4, shifted in the second block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(1, 32, 2, 2)
        self.blocks = nn.ModuleList(WindowAttention3D(32, 8, 2, 3) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.head = nn.Linear(32, 3)
        region = torch.zeros(1, 4, 4, 4, 1)
        for number, (a, b, c) in enumerate(
            torch.cartesian_prod(*(torch.arange(3) for _ in range(3))).tolist()
        ):
            cut = (slice(0, -2), slice(-2, -1), slice(-1, None))
            region[:, cut[a], cut[b], cut[c]] = number
        flat = self.cut(region).squeeze(-1)
        same = flat.unsqueeze(1) == flat.unsqueeze(2)
        self.register_buffer("mask", torch.zeros(8, 8, 8).masked_fill(~same, float("-inf")))

    @staticmethod
    def cut(x: Tensor) -> Tensor:
        b, d, h, w, c = x.shape
        x = x.view(b, d // 2, 2, h // 2, 2, w // 2, 2, c)
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 8, c)

    @staticmethod
    def join(x: Tensor, b: int) -> Tensor:
        x = x.view(b, 2, 2, 2, 2, 2, 2, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(b, 4, 4, 4, -1)

    def forward(self, volume: Tensor) -> Tensor:
        x = self.embed(volume).permute(0, 2, 3, 4, 1)
        for block, norm, shift in zip(self.blocks, self.norms, (0, 1), strict=True):
            y = torch.roll(norm(x), (-shift,) * 3, (1, 2, 3)) if shift else norm(x)
            y = self.join(block(self.cut(y), self.mask if shift else None), x.shape[0])
            x = x + (torch.roll(y, (shift,) * 3, (1, 2, 3)) if shift else y)
        return self.head(x).permute(0, 4, 1, 2, 3)


def volumes(batch: int = 2) -> tuple[ModelInput, ...]:
    return (ModelInput("volume", noise(batch, 1, 8, 8, 8), {0: "batch"}),)


class KnnAttention(nn.Module):
    """A point looks at its nearest neighbours, gathered; positions are added to keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q = nn.Linear(3, 32), nn.Linear(32, 32)
        self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(3))
        self.position = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 32))
        self.router, self.neighbours = nn.Linear(32, 4), 4

    def forward(self, xyz: Tensor) -> Tensor:
        b, n, _ = xyz.shape
        distance = ((xyz[:, :, None] - xyz[:, None]) ** 2).sum(-1)
        near = distance.topk(self.neighbours, dim=-1, largest=False).indices
        rows = torch.arange(b)[:, None, None]
        x = self.embed(xyz)
        delta = self.position(xyz[:, :, None] - xyz[rows, near])
        q = self.q(x).view(b, n, 4, 8)
        k = (self.k(x)[rows, near] + delta).view(b, n, self.neighbours, 4, 8)
        v = (self.v(x)[rows, near] + delta).view(b, n, self.neighbours, 4, 8)
        scores = torch.einsum("bnhd,bnkhd->bnhk", q, k) / 8**0.5
        out = torch.einsum("bnhk,bnkhd->bnhd", scores.softmax(-1), v)
        prob = self.router(x).softmax(-1)
        value, index = prob.topk(2, dim=-1)
        gates = torch.zeros_like(prob).scatter_add(-1, index, value)
        return x + self.out((out * gates[..., None]).flatten(-2))


def points(batch: int = 2, points: int = 9) -> tuple[ModelInput, ...]:
    return (ModelInput("xyz", noise(batch, points, 3), {0: "batch", 1: "points"}),)


class LoopAttention(nn.Module):
    """One small module a head; index_add puts a head's part where it belongs."""

    def __init__(self, dim: int, source: int, heads: int, k: int) -> None:
        super().__init__()
        self.k, self.size = k, dim // heads
        self.to_q = nn.ModuleList(nn.Linear(dim, dim // heads) for _ in range(heads))
        self.to_k = nn.ModuleList(nn.Linear(source, dim // heads) for _ in range(heads))
        self.to_v = nn.ModuleList(nn.Linear(source, dim // heads) for _ in range(heads))
        self.choose, self.merge = nn.Linear(dim, heads), nn.Linear(dim, dim)

    def forward(self, x: Tensor, source: Tensor, padding: Tensor | None = None) -> Tensor:
        probs = self.choose(x).softmax(-1)
        value, index = probs.topk(self.k, dim=-1)
        gates = torch.zeros_like(probs).scatter(-1, index, value / value.sum(-1, keepdim=True))
        merged = torch.zeros_like(x)
        for head, (q, k, v) in enumerate(zip(self.to_q, self.to_k, self.to_v, strict=True)):
            scores = q(x) @ k(source).transpose(1, 2) / self.size**0.5
            if padding is not None:
                scores[padding[:, None].expand_as(scores)] = float("-inf")
            part = torch.softmax(scores, -1) @ v(source)
            channels = torch.arange(head * self.size, (head + 1) * self.size)
            merged = merged.index_add(-1, channels, part * gates[..., head : head + 1])
        return self.merge(merged)


class Perceiver(nn.Module):
    """Learned latents read bytes, think, and a query of the caller's reads the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.embed = nn.Parameter(torch.randn(4, 32)), nn.Embedding(20, 24)
        self.read, self.think = LoopAttention(32, 24, 4, 2), LoopAttention(32, 32, 4, 2)
        self.answer, self.norm = LoopAttention(32, 32, 4, 1), nn.LayerNorm(32)

    def forward(self, values: Tensor, padding: Tensor, query: Tensor) -> Tensor:
        x = self.latents.expand(values.shape[0], -1, -1)
        x = x + self.read(x, self.embed(values), padding=padding)
        x = x + self.think(self.norm(x), self.norm(x))
        return query + self.answer(query, self.norm(x))


def bytes_and_queries(batch: int = 2, length: int = 6, queries: int = 3) -> tuple[ModelInput, ...]:
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[-1, -2:] = True
    values = torch.arange(batch * length).reshape(batch, length) * 7 % 20
    return (
        ModelInput("values", values, {0: "batch", 1: "length"}),
        ModelInput("padding", padding, {0: "batch", 1: "length"}),
        ModelInput("query", noise(batch, queries, 32), {0: "batch", 1: "queries"}),
    )


MODELS = [
    ZooModel(
        "timesformer_divided",
        seeded(TimeSformer),
        clips,
        Expected(
            (ExpectedLayer(4, 4, 2, 0, "ranked"), ExpectedLayer(4, 4, 3, 0, "ranked")),
        ),
        "places and frames folded into the batch, masked before the softmax and behind it",
    ),
    ZooModel(
        "swin_3d",
        seeded(Swin3D),
        volumes,
        Expected((ExpectedLayer(8, 8, 3, 2, "custom"),) * 2),
        "eight axes, -inf between regions, the least of the top-k as threshold, halves of weight",
    ),
    ZooModel(
        "point_knn",
        seeded(KnnAttention),
        points,
        Expected((ExpectedLayer(4, 4, 2, 0, "ranked"),)),
        "each query has keys of its own, gathered by distance; scatter_add",
    ),
    ZooModel(
        "perceiver_loop",
        seeded(Perceiver),
        bytes_and_queries,
        Expected(
            (
                ExpectedLayer(4, 4, 2, 0, "ranked"),
                ExpectedLayer(4, 4, 2, 0, "ranked"),
                ExpectedLayer(4, 4, 1, 0, "ranked"),
            )
        ),
        "a module a head, -inf assigned in place, index_add; the first router sees no input",
    ),
]

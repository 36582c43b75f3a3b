"""Pyramids and their shortcuts: fewer keys, pooled queries, attention of channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


def maps(batch: int = 2, rows: int = 2, cols: int = 3) -> tuple[ModelInput, ...]:
    """Return an image whose sides are multiples of 4."""
    dims = {0: "batch", 2: "4*rows", 3: "4*cols"}
    return (ModelInput("x", noise(batch, 3, 4 * rows, 4 * cols), dims),)


def patches(batch: int = 2, tokens: int = 6) -> tuple[ModelInput, ...]:
    return (ModelInput("x", noise(batch, tokens, 32), {0: "batch", 1: "tokens"}),)


class EfficientSelfAttention(nn.Module):
    """Keys and values of a smaller image; heads at least as probable as the kth are on."""

    def __init__(self, dim: int, heads: int, sr: int, k: int) -> None:
        super().__init__()
        self.heads, self.k, self.scale = heads, k, (dim // heads) ** -0.5
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.sr, self.norm = nn.Conv2d(dim, dim, sr, sr), nn.LayerNorm(dim)
        self.gate, self.proj = nn.Linear(dim, heads), nn.Linear(dim, dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        reduced = self.sr(x.permute(0, 2, 1).reshape(b, c, h, w)).reshape(b, c, -1)
        kv = self.kv(self.norm(reduced.permute(0, 2, 1)))
        kv = kv.reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        out = (attn @ v).transpose(1, 2)
        probs = self.gate(x).softmax(-1)
        kth = probs.kthvalue(self.heads - self.k + 1, dim=-1, keepdim=True).values
        gates = probs * (probs >= kth)
        gates = gates / gates.sum(dim=-1, keepdim=True)
        out = out * gates[..., None].expand_as(out)
        return self.proj(out.reshape(b, n, c))


class Segformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 32, 3, 2, 1), nn.LayerNorm(32)
        self.attn, self.fc1 = EfficientSelfAttention(32, 4, 2, 2), nn.Linear(32, 64)
        self.dwconv, self.fc2 = nn.Conv2d(64, 64, 3, 1, 1, groups=64), nn.Linear(64, 32)
        self.classify = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = self.embed(x)
        h, w = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm(x), h, w)
        y = self.fc1(x)
        y = self.dwconv(y.transpose(1, 2).view(y.shape[0], -1, h, w)).flatten(2).transpose(1, 2)
        x = x + self.fc2(F.gelu(y))
        x = self.classify(x.transpose(1, 2).reshape(x.shape[0], 32, h, w))
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class PartitionAttention(nn.Module):
    """Attention of [batch, groups, tokens, dim]; the bias is a table for each head."""

    def __init__(self, dim: int, heads: int, tokens: int, mode: str) -> None:
        super().__init__()
        self.heads, self.mode = heads, mode
        self.to_qkv, self.merge = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.positional = nn.Parameter(torch.randn(heads, tokens, tokens) * 0.1)
        self.switch, self.temperature = nn.Linear(dim, heads), 0.5

    def gates(self, x: Tensor) -> Tensor:
        if self.mode == "block":
            p = torch.sigmoid(self.switch(x))
            best = torch.topk(p, 2, dim=-1)
            kept = torch.zeros_like(p).scatter(-1, best.indices, best.values)
            return kept / kept.sum(-1, keepdim=True)
        p = F.softmax(self.switch(x) / self.temperature, -1)
        return p * F.one_hot(p.argmax(-1), self.heads)

    def forward(self, x: Tensor) -> Tensor:
        b, g, p, _ = x.shape
        q, k, v = self.to_qkv(x).chunk(3, -1)
        q, k, v = (t.reshape(b, g, p, self.heads, -1).permute(0, 1, 3, 2, 4) for t in (q, k, v))
        scores = torch.einsum("BGHID,BGHJD->BGHIJ", q, k) * q.shape[-1] ** -0.5
        weights = F.softmax(scores + self.positional, dim=-1)
        out = torch.einsum("BGHIJ,BGHJD,BGIH->BGIHD", weights, v, self.gates(x))
        return self.merge(out.reshape(b, g, p, -1))


class MaxVit(nn.Module):
    """Attention within blocks of 4 tokens, then along a grid of 4, in images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 2, 2)
        self.block = PartitionAttention(32, 4, 4, "block")
        self.grid = PartitionAttention(32, 4, 4, "grid")
        self.norm1, self.norm2, self.head = nn.LayerNorm(32), nn.LayerNorm(32), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = self.norm1(x).reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        y = self.block(y.reshape(b, -1, 4, c)).reshape(b, h // 2, w // 2, 2, 2, c)
        x = x + y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        y = self.norm2(x).reshape(b, 2, h // 2, 2, w // 2, c).permute(0, 2, 4, 1, 3, 5)
        y = self.grid(y.reshape(b, -1, 4, c)).reshape(b, h // 2, w // 2, 2, 2, c)
        x = x + y.permute(0, 3, 1, 4, 2, 5).reshape(b, h, w, c)
        return self.head(x.mean(dim=(1, 2)))


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    return torch.zeros_like(scores).scatter_(-1, scores.topk(k, -1).indices, 1.0)


class CrossCovariance(nn.Module):
    """Channels look at channels: a token is a row of the values, and is gated as one."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature, self.qkv = nn.Parameter(torch.ones(4, 1, 1)), nn.Linear(32, 96)
        self.router, self.proj = nn.Linear(32, 4), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attn = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        out = (attn @ v).permute(0, 3, 1, 2)
        p = self.router(x).softmax(-1)
        return x + self.proj((out * (p * top_k_mask(p, 2)).unsqueeze(-1)).reshape(b, n, c))


class TalkingHeads(nn.Module):
    """Heads are mixed in front of the softmax and behind it, and gated at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.router = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 4)
        self.proj_l, self.proj_w = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
        attn = (q * 8**-0.5) @ k.transpose(-2, -1)
        attn = self.proj_l(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(dim=-1)
        attn = self.proj_w(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        p = self.router(x).softmax(-1)
        out = (attn @ v).transpose(1, 2) * (p * top_k_mask(p, 2)).unsqueeze(-1)
        return self.proj(out.reshape(b, n, c))


class ClassAttention(nn.Module):
    """Only the class token asks; the shared head is the last one, routed heads come first."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(32, 32) for _ in range(4))
        self.router = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(b, 1, 4, 8).permute(0, 2, 1, 3)
        k = self.k(x).reshape(b, n, 4, 8).permute(0, 2, 1, 3)
        v = self.v(x).reshape(b, n, 4, 8).permute(0, 2, 1, 3)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        p = self.router(x[:, :1]).softmax(-1)
        routed = p * top_k_mask(p, 1)
        gates = torch.cat([routed / routed.sum(-1, keepdim=True), torch.ones(b, 1, 1)], dim=-1)
        return self.proj((out * gates[..., None]).reshape(b, 1, c))


class CaiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls, self.gamma = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.ones(32))
        self.talking, self.ask, self.norm = TalkingHeads(), ClassAttention(), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.talking(self.norm(x))
        cls = self.cls.expand(x.shape[0], -1, -1)
        return cls + self.gamma * self.ask(self.norm(torch.cat((cls, x), dim=1)))


class FactorAttention(nn.Module):
    """softmax(keys) over tokens, times values, first: no weight of a token for a token exists."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.router = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 4)
        self.crpe = nn.Conv1d(32, 32, 3, padding=1, groups=32)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
        context = torch.einsum("bhnk,bhnv->bhkv", k.softmax(dim=2), v)
        factor = torch.einsum("bhnk,bhkv->bhnv", q, context) * 8**-0.5
        position = self.crpe(v.transpose(2, 3).reshape(b, c, n)).view(b, 4, 8, n).transpose(2, 3)
        p = self.router(x).softmax(-1)
        gates = (p * top_k_mask(p, 2)).transpose(1, 2).unsqueeze(-1)
        out = (factor + q * position) * gates
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class PoolingAttention(nn.Module):
    """Queries are pooled by 2, keys by 4, biases are computed of queries; queries are added."""

    def __init__(self, dim: int = 32, heads: int = 4, k: int = 2, side: int = 8) -> None:
        super().__init__()
        self.heads, self.d, self.k = heads, dim // heads, k
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.pool_q = nn.Conv2d(self.d, self.d, 3, 2, 1, groups=self.d, bias=False)
        self.pool_k = nn.Conv2d(self.d, self.d, 3, 4, 1, groups=self.d, bias=False)
        self.pool_v = nn.Conv2d(self.d, self.d, 3, 4, 1, groups=self.d, bias=False)
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(self.d) for _ in range(3))
        self.rel_h = nn.Parameter(torch.randn(side // 2 + side // 4, self.d) * 0.2)
        self.rel_w = nn.Parameter(torch.randn(side // 2 + side // 4, self.d) * 0.2)
        at = torch.arange(side // 2)[:, None] - 2 * torch.arange(side // 4)[None]
        self.register_buffer("distance", at + side // 4, persistent=False)
        self.router = nn.Linear(self.d * heads, heads)

    def pool(self, x: Tensor, conv: nn.Module, norm: nn.Module, side: int) -> Tensor:
        b, h, _n, d = x.shape
        x = conv(x.reshape(b * h, side, side, d).permute(0, 3, 1, 2).contiguous())
        return norm(x.reshape(b, h, d, -1).transpose(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.pool(q, self.pool_q, self.norm_q, 8)
        k = self.pool(k, self.pool_k, self.norm_k, 8)
        v = self.pool(v, self.pool_v, self.norm_v, 8)
        attn = (q * self.d**-0.5) @ k.transpose(-2, -1)
        grid = q.reshape(b, self.heads, 4, 4, self.d)
        by_row = torch.einsum("byhwc,hkc->byhwk", grid, self.rel_h[self.distance])
        by_col = torch.einsum("byhwc,wkc->byhwk", grid, self.rel_w[self.distance])
        attn = attn.view(b, -1, 4, 4, 2, 2) + by_row[..., :, None] + by_col[..., None, :]
        attn = attn.view(b, -1, 16, 4).softmax(dim=-1)
        pooled = q.transpose(1, 2).flatten(2)
        values, which = self.router(pooled).softmax(-1).topk(self.k, -1)
        gates = torch.zeros(b, 16, self.heads).scatter(2, which, values / values.sum(2, True))
        out = gates.transpose(1, 2)[..., None] * (attn @ v) + q
        return self.proj(out.transpose(1, 2).reshape(b, -1, self.heads * self.d))


class Mvit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attn, self.norm = (
            nn.Conv2d(3, 32, 2, 2),
            PoolingAttention(),
            nn.LayerNorm(32),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch(pixels)
        skip = F.max_pool2d(x, 3, 2, 1).flatten(2).transpose(1, 2)
        return skip + self.attn(self.norm(x.flatten(2).transpose(1, 2)))


def squares(batch: int = 2) -> tuple[ModelInput, ...]:
    return (ModelInput("pixels", noise(batch, 3, 16, 16), {0: "batch"}),)


MODELS = [
    ZooModel(
        "segformer_reduction",
        seeded(Segformer),
        maps,
        Expected((ExpectedLayer(4, 4, 2, 0, "ranked"),)),
        "keys of a convolution with stride, kthvalue as threshold, interpolated at the end",
    ),
    ZooModel(
        "maxvit_block_grid",
        seeded(MaxVit),
        maps,
        Expected(
            (ExpectedLayer(4, 4, 2, 0, "ranked"), ExpectedLayer(4, 4, 1, 0, "ranked")),
        ),
        "five axes, gates as third operand of an einsum, temperature; height and width dynamic",
    ),
    ZooModel(
        "xcit_covariance",
        seeded(CrossCovariance),
        patches,
        Expected((ExpectedLayer(4, None, 2, 0, "ranked", replaced=False),)),
        "softmax over channels: not an attention of tokens; refused with a reason",
    ),
    ZooModel(
        "cait_talking",
        seeded(CaiT),
        patches,
        Expected(
            (
                ExpectedLayer(4, None, 2, 0, "ranked", replaced=False),
                ExpectedLayer(4, 4, 1, 1, "ranked"),
            )
        ),
        "talking heads are not one head's own; class attention is, its shared head is the last",
    ),
    ZooModel(
        "coat_factorized",
        seeded(FactorAttention),
        patches,
        Expected((ExpectedLayer(4, None, 2, 0, "ranked", replaced=False),)),
        "linear attention with a convolution's position term; refused with a reason",
    ),
    ZooModel(
        "mvit_pooling",
        seeded(Mvit),
        squares,
        Expected((ExpectedLayer(4, 4, 2, 0, "ranked"),)),
        "pooled queries and keys, biases computed of queries, pooled queries added to gated heads",
    ),
]

"""Detectors and segmenters: learned queries, masks, maps of features of any size."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel, noise, seeded


def renormalised_top_k(logits: Tensor, k: int) -> Tensor:
    weights = F.softmax(logits, dim=-1)
    values, chosen = torch.topk(weights, k, dim=-1)
    values = values / values.sum(-1, keepdim=True)
    return torch.zeros_like(weights).scatter_(-1, chosen, values)


class GatedMultihead(nn.MultiheadAttention):
    """torch's own module, whose weights a checkpoint has, computed by hand to reach the heads."""

    def __init__(self, dim: int, heads: int, k: int) -> None:
        super().__init__(dim, heads, dropout=0.1, batch_first=False)
        self.k, self.gate = k, nn.Linear(dim, heads)

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        length, batch, dim = query.shape
        wq, wk, wv = self.in_proj_weight.chunk(3)
        bq, bk, bv = self.in_proj_bias.chunk(3)
        rows, size = batch * self.num_heads, self.head_dim
        q = F.linear(query, wq, bq).contiguous().view(length, rows, size).transpose(0, 1)
        k = F.linear(key, wk, bk).contiguous().view(-1, rows, size).transpose(0, 1)
        v = F.linear(value, wv, bv).contiguous().view(-1, rows, size).transpose(0, 1)
        weights = torch.bmm(q * size**-0.5, k.transpose(1, 2))
        if key_padding_mask is not None:
            weights = weights.view(batch, self.num_heads, length, -1)
            weights = weights.masked_fill(key_padding_mask[:, None, None], float("-inf"))
            weights = weights.view(rows, length, -1)
        weights = F.dropout(weights.softmax(-1), self.dropout, self.training)
        out = torch.bmm(weights, v).transpose(0, 1).reshape(length, batch, self.num_heads, size)
        gates = renormalised_top_k(self.gate(query), self.k)
        return self.out_proj((gates.unsqueeze(-1) * out).view(length, batch, dim))


class DecoderLayer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = GatedMultihead(dim, 4, 2), GatedMultihead(dim, 4, 3)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(dim, 64), nn.Linear(64, dim)

    def forward(
        self, tgt: Tensor, memory: Tensor, pos: Tensor, query: Tensor, pad: Tensor
    ) -> Tensor:
        q = k = tgt + query
        tgt = self.norm1(tgt + self.self_attn(q, k, value=tgt))
        tgt = self.norm2(tgt + self.cross_attn(tgt + query, memory + pos, memory, pad))
        return self.norm3(tgt + self.linear2(F.relu(self.linear1(tgt))))


class Detr(nn.Module):
    """The first self-attention sees nothing but learned queries; the batch repeats them."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.queries = nn.Conv2d(8, 32, 1), nn.Embedding(5, 32)
        self.rows, self.cols = nn.Embedding(20, 16), nn.Embedding(20, 16)
        self.layers = nn.ModuleList(DecoderLayer(32) for _ in range(2))
        self.classes, self.boxes = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, features: Tensor, padding: Tensor) -> dict[str, Tensor]:
        b, _, h, w = features.shape
        src = self.project(features).flatten(2).permute(2, 0, 1)
        x, y = self.cols.weight[:w], self.rows.weight[:h]
        pos = torch.cat([x[None].repeat(h, 1, 1), y[:, None].repeat(1, w, 1)], -1)
        pos = pos.flatten(0, 1).unsqueeze(1)
        query = self.queries.weight.unsqueeze(1).repeat(1, b, 1)
        tgt = torch.zeros_like(query)
        for layer in self.layers:
            tgt = layer(tgt, src, pos, query, padding.flatten(1))
        tgt = tgt.transpose(0, 1)
        return {"pred_logits": self.classes(tgt), "pred_boxes": self.boxes(tgt).sigmoid()}


def padded_features(batch: int = 2, height: int = 3, width: int = 4) -> tuple[ModelInput, ...]:
    padding = torch.zeros(batch, height, width, dtype=torch.bool)
    padding[-1, :, -1] = True
    dims = {0: "batch", 1: "height", 2: "width"}
    features = {0: "batch", 2: "height", 3: "width"}
    return (
        ModelInput("features", noise(batch, 8, height, width), features),
        ModelInput("padding", padding, dims),
    )


class DownsampledAttention(nn.Module):
    """Projects to fewer channels; a correction of balance decides, sigmoids weigh."""

    def __init__(self, dim: int, heads: int, k: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.num_heads, self.k = heads, k
        self.q_proj, self.k_proj = nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.v_proj, self.out_proj = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.gate = nn.Linear(dim, heads, bias=False)
        self.register_buffer("correction", torch.linspace(-0.2, 0.2, heads))

    def _separate(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        return x.reshape(b, n, self.num_heads, c // self.num_heads).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.gate(q).sigmoid()
        chosen = torch.topk(scores + self.correction, self.k, dim=-1, sorted=False).indices
        weights = scores.gather(-1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * 1.5
        gates = torch.zeros_like(scores).scatter(-1, chosen, weights)
        q, k, v = (
            self._separate(m(x)) for m, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        attn = q @ k.permute(0, 1, 3, 2)
        attn = torch.softmax(attn / math.sqrt(q.shape[-1]), dim=-1)
        out = (attn @ v) * gates.transpose(1, 2).unsqueeze(3)
        b, h, n, c = out.shape
        return self.out_proj(out.transpose(1, 2).reshape(b, n, h * c))


class TwoWay(nn.Module):
    """Prompts look at the image and the image at the prompts, as a mask decoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.output_tokens = nn.Embedding(3, 32)
        self.self_attn = DownsampledAttention(32, 4, 2)
        self.to_image = DownsampledAttention(32, 4, 2, downsample=2)
        self.to_tokens = DownsampledAttention(32, 4, 3, downsample=2)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.upscale = nn.ConvTranspose2d(32, 8, 2, 2)
        self.hyper = nn.Linear(32, 8)

    def forward(self, image: Tensor, image_pe: Tensor, prompts: Tensor) -> Tensor:
        b, c, h, w = image.shape
        tokens = torch.cat((self.output_tokens.weight.expand(b, -1, -1), prompts), dim=1)
        keys, key_pe = image.flatten(2).permute(0, 2, 1), image_pe.flatten(2).permute(0, 2, 1)
        queries = self.norms[0](self.self_attn(q=tokens, k=tokens, v=tokens))
        queries = queries + self.to_image(q=queries + tokens, k=keys + key_pe, v=keys)
        queries = self.norms[1](queries)
        keys = self.norms[2](keys + self.to_tokens(q=keys + key_pe, k=queries + tokens, v=queries))
        up = self.upscale(keys.transpose(1, 2).view(b, c, h, w))
        return (self.hyper(queries[:, :3]) @ up.flatten(2)).view(b, 3, 2 * h, 2 * w)


def image_and_prompts(batch: int = 2, side: int = 3, prompts: int = 2) -> tuple[ModelInput, ...]:
    dims = {0: "batch", 2: "side", 3: "side"}
    return (
        ModelInput("image", noise(batch, 32, side, side), dims),
        ModelInput("image_pe", noise(1, 32, side, side, seed=1), {2: "side", 3: "side"}),
        ModelInput("prompts", noise(batch, prompts, 32, seed=2), {0: "batch", 1: "prompts"}),
    )


class Deformable(nn.Module):
    """Samples values at points that each query predicts: no product of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.points = 4, 3
        self.offsets, self.weights = nn.Linear(32, 24), nn.Linear(32, 12)
        self.value, self.out, self.router = nn.Conv2d(8, 32, 1), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, query: Tensor, features: Tensor) -> Tensor:
        b, n, _ = query.shape
        h, w = features.shape[-2:]
        value = self.value(features).reshape(b * self.heads, 8, h, w)
        at = self.offsets(query).view(b, n, self.heads, self.points, 2).tanh()
        at = at.permute(0, 2, 1, 3, 4).reshape(b * self.heads, n, self.points, 2)
        sampled = F.grid_sample(value, at, align_corners=False)
        weights = self.weights(query).view(b, n, self.heads, self.points).softmax(-1)
        weights = weights.permute(0, 2, 1, 3).reshape(b * self.heads, 1, n, self.points)
        out = (sampled * weights).sum(-1).view(b, self.heads, 8, n).permute(0, 3, 1, 2)
        gates = renormalised_top_k(self.router(query), 2)
        return self.out((out * gates[..., None]).flatten(2))


def queries_and_features(batch: int = 2, queries: int = 5) -> tuple[ModelInput, ...]:
    return (
        ModelInput("query", noise(batch, queries, 32), {0: "batch", 1: "queries"}),
        ModelInput("features", noise(batch, 8, 6, 5, seed=1), {0: "batch"}),
    )


class BottleneckAttention(nn.Module):
    """Heads stay in the channels of an image; logits of rows and columns are added."""

    def __init__(self, dim: int, side: int, heads: int) -> None:
        super().__init__()
        self.heads, self.side, self.size = heads, side, dim // heads
        self.to_qkv, self.gate = (
            nn.Conv2d(dim, 3 * dim, 1, bias=False),
            nn.Conv2d(dim, heads - 1, 1),
        )
        self.height = nn.Parameter(torch.randn(2 * side - 1, self.size) * self.size**-0.5)
        self.width = nn.Parameter(torch.randn(2 * side - 1, self.size) * self.size**-0.5)

    def relative(self, q: Tensor, table: Tensor) -> Tensor:
        """Shift logits of distances to those of positions, by padding and reshaping."""
        b, h, x, y, _ = q.shape
        logits = torch.einsum("bhxyd,rd->bhxyr", q, table).reshape(b, h * x, y, -1)
        logits = F.pad(logits, (0, 1)).reshape(b, h * x, -1)
        logits = F.pad(logits, (0, y - 1)).reshape(b, h * x, y + 1, 2 * y - 1)
        return logits[:, :, :y, y - 1 :].reshape(b, h, x, 1, y, y).expand(-1, -1, -1, x, -1, -1)

    def forward(self, fmap: Tensor) -> Tensor:
        b, c, x, y = fmap.shape
        q, k, v = (
            t.reshape(b, self.heads, self.size, x * y).transpose(2, 3)
            for t in self.to_qkv(fmap).chunk(3, dim=1)
        )
        q = q * self.size**-0.5
        grid = q.reshape(b, self.heads, x, y, self.size)
        cols = self.relative(grid, self.width).permute(0, 1, 2, 4, 3, 5)
        rows = self.relative(grid.transpose(2, 3), self.height).permute(0, 1, 4, 2, 5, 3)
        sim = torch.einsum("bhid,bhjd->bhij", q, k)
        sim = sim + (cols + rows).reshape(b, self.heads, x * y, x * y)
        out = torch.einsum("bhij,bhjd->bhid", sim.softmax(dim=-1), v)
        out = out.permute(0, 1, 3, 2).reshape(b, self.heads, self.size, x, y)
        score = torch.sigmoid(self.gate(fmap))
        gates = torch.cat([torch.ones_like(score[:, :1]), score * (score > 0.5)], dim=1)
        return (out * gates.unsqueeze(2)).reshape(b, c, x, y)


class BotNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.attn, self.up = BottleneckAttention(32, 4, 4), nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.down(x)))
        return self.up(F.relu(x + self.attn(x)))


def small_images(batch: int = 2) -> tuple[ModelInput, ...]:
    return (ModelInput("x", noise(batch, 3, 8, 8), {0: "batch"}),)


MODELS = [
    ZooModel(
        "detr_decoder",
        seeded(Detr),
        padded_features,
        Expected(
            (ExpectedLayer(4, 4, 2, 0, "ranked"), ExpectedLayer(4, 4, 3, 0, "ranked")) * 2,
        ),
        "sequence first, bmm on batch * heads, bool padding; the first router sees no input",
    ),
    ZooModel(
        "sam_two_way",
        seeded(TwoWay),
        image_and_prompts,
        Expected(
            (
                ExpectedLayer(4, 4, 2, 0, "scored"),
                ExpectedLayer(4, 4, 2, 0, "scored"),
                ExpectedLayer(4, 4, 3, 0, "scored"),
            )
        ),
        "cross-attention both ways, fewer channels inside, scores corrected by a bias",
    ),
    ZooModel(
        "deformable_sampling",
        seeded(Deformable),
        queries_and_features,
        Expected(),
        "grid_sample instead of keys: gated heads, but no attention; a reason should be given",
    ),
    ZooModel(
        "botnet_relative",
        seeded(BotNet),
        small_images,
        Expected((ExpectedLayer(4, 4, None, None, "custom"),)),
        "2-D relative logits by padding and reshaping, heads in channels of an image, conv router",
    ),
]

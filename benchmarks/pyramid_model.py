"""A small vision transformer whose first stage reads the neighbourhood of each token and a pooled
map in one softmax, and whose second stage reads all tokens. For tests: the published form, few
layers, few tokens.

Source: Shi, TransNeXt: Robust Foveal Visual Perception for Vision Transformers (arXiv 2311.17132),
section 3, with the gates of MoH (arXiv 2410.11842).
"""

import math

import torch
import torch.nn.functional as F
from models import TwoStageRouter
from torch import Tensor, nn

WINDOW = 3


def pyramid(
    *, dim: int, num_heads: int, num_shared_heads: int, top_k: int, side: int, pool: int
) -> nn.Module:
    """Build the model for images of `4 * side` pixels a side.

    Args:
        side: Tokens a side in the first stage; the second has half of them.
        pool: Tokens a side of the pooled map.
    """
    heads = {"num_heads": num_heads, "num_shared_heads": num_shared_heads, "top_k": top_k}
    return Pyramid(dim, side, pool, heads)


class Pyramid(nn.Module):
    """Classify images [B, 3, 4 * side, 4 * side]."""

    def __init__(self, dim: int, side: int, pool: int, heads: dict[str, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, kernel_size=7, stride=4, padding=3)
        self.shrink = nn.Conv2d(dim, 2 * dim, kernel_size=3, stride=2, padding=1)
        focus = FocusAttention(dim, side, pool, **heads)
        full = FullAttention(2 * dim, side // 2, **heads)
        self.blocks = nn.ModuleList([PyramidBlock(dim, focus), PyramidBlock(2 * dim, full)])
        self.norm = nn.LayerNorm(2 * dim)
        self.head = nn.Linear(2 * dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 10]."""
        x = self.blocks[0](self.stem(images))
        x = self.blocks[1](self.shrink(x))
        logits: Tensor = self.head(self.norm(x.flatten(2).transpose(1, 2)).mean(dim=1))
        return logits


class PyramidBlock(nn.Module):
    """Pre-norm block on a map [B, C, side, side]."""

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = attention, ConvolutionalGlu(dim)

    def forward(self, image: Tensor) -> Tensor:
        side = image.shape[-1]
        x = image.flatten(2).transpose(1, 2)  # [B, N, C]
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x), side)
        return x.transpose(1, 2).unflatten(-1, (side, side))


class ConvolutionalGlu(nn.Module):
    """Gated perceptron with a depthwise convolution over the tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(2 * dim, dim)
        self.depthwise = nn.Conv2d(2 * dim, 2 * dim, kernel_size=3, padding=1, groups=2 * dim)

    def forward(self, x: Tensor, side: int) -> Tensor:
        convolved, gate = self.up(x).chunk(2, dim=-1)
        image = convolved.transpose(1, 2).reshape(x.shape[0], -1, side, side).contiguous()
        convolved = self.depthwise(image).flatten(2).transpose(1, 2)
        output: Tensor = self.down(F.gelu(convolved) * gate)
        return output


class CosineAttention(nn.Module):
    """What both attentions share: normalised queries and keys, a scale and a bias of positions."""

    def __init__(self, dim: int, num_heads: int, num_shared_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), 4.0))
        self.query_embedding = nn.Parameter(0.02 * torch.randn(num_heads, 1, self.head_dim))
        self.bias = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, num_heads))
        self.router = TwoStageRouter(dim, num_heads, num_shared_heads, top_k)
        self.proj = nn.Linear(dim, dim)

    def by_head(self, x: Tensor) -> Tensor:
        """[B, N, H*D] to [B, H, N, D]."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def position_bias(self, table: Tensor) -> Tensor:
        """Return [H, N, P] from relative coordinates [N, P, 2]."""
        bias: Tensor = self.bias(table).permute(2, 0, 1)
        return bias

    def weigh(self, heads: Tensor, x: Tensor) -> Tensor:
        """Weigh heads [B, H, N, D] by the gates, and project them."""
        weighted = self.router(x).unsqueeze(-1) * heads.transpose(1, 2)  # [B, N, H, D]
        output: Tensor = self.proj(weighted.flatten(2))
        return output


class FullAttention(CosineAttention):
    """Every token reads every token."""

    def __init__(self, dim: int, side: int, **heads: int) -> None:
        super().__init__(dim, **heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.table = nn.Buffer(relative_coordinates(side, side))
        self.length_scale = nn.Buffer(torch.tensor(math.log(side * side)))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.by_head(part) for part in self.qkv(x).chunk(3, dim=-1))
        query = F.normalize(query, dim=-1) + self.query_embedding
        query = query * F.softplus(self.temperature) * self.length_scale
        scores = query @ F.normalize(key, dim=-1).transpose(-2, -1)  # [B, H, N, N]
        weights = (scores + self.position_bias(self.table)).softmax(dim=-1)
        return self.weigh(weights @ value, x)


class FocusAttention(CosineAttention):
    """Every token reads its neighbours and a pooled map."""

    def __init__(self, dim: int, side: int, pool: int, **heads: int) -> None:
        super().__init__(dim, **heads)
        self.side, self.pool = side, pool
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.reduce = nn.Conv2d(dim, dim, kernel_size=1)
        self.pool_norm = nn.LayerNorm(dim)
        self.window_bias = nn.Parameter(0.02 * torch.randn(self.num_heads, 1, WINDOW**2))
        self.tokens = nn.Parameter(0.02 * torch.randn(self.num_heads, self.head_dim, WINDOW**2))
        self.token_bias = nn.Parameter(0.02 * torch.randn(self.num_heads, 1, WINDOW**2))
        inside = F.unfold(torch.ones(1, 1, side, side), WINDOW, padding=1)[0].T  # [N, L]
        self.outside = nn.Buffer(inside == 0)
        self.length_scale = nn.Buffer((inside.sum(dim=-1, keepdim=True) + pool * pool).log())
        self.table = nn.Buffer(relative_coordinates(side, pool))

    def forward(self, x: Tensor) -> Tensor:
        query = F.normalize(self.by_head(self.query(x)), dim=-1)  # [B, H, N, D]
        scaled = (query + self.query_embedding) * F.softplus(self.temperature) * self.length_scale
        near_key, near_value = self._neighbours(x)  # [B, H, N, D, L]
        far_key, far_value = self._pooled(x)  # [B, H, P, D]
        near = (scaled.unsqueeze(-2) @ near_key).squeeze(-2) + self.window_bias
        near = near.masked_fill(self.outside, -torch.inf)
        far = scaled @ far_key.transpose(-2, -1) + self.position_bias(self.table)
        weights = torch.cat([near, far], dim=-1).softmax(dim=-1)
        near, far = weights.split([WINDOW**2, self.pool**2], dim=-1)
        near = query @ self.tokens + self.token_bias + near
        heads = (near.unsqueeze(-2) @ near_value.transpose(-2, -1)).squeeze(-2)
        return self.weigh(heads + far @ far_value, x)

    def _neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(x).chunk(2, dim=-1)
        key = F.normalize(key.unflatten(-1, (self.num_heads, -1)), dim=-1).flatten(2)
        maps = torch.cat([key, value], dim=-1).transpose(1, 2).unflatten(-1, (self.side, -1))
        windows = F.unfold(maps, WINDOW, padding=1)  # [B, 2*H*D*L, N]
        split = windows.unflatten(1, (2 * self.num_heads, self.head_dim, WINDOW**2))
        near_key, near_value = split.permute(0, 1, 4, 2, 3).chunk(2, dim=1)
        return near_key, near_value

    def _pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        image = x.transpose(1, 2).unflatten(-1, (self.side, -1))  # [B, C, side, side]
        small = F.adaptive_avg_pool2d(F.gelu(self.reduce(image)), self.pool)
        small = self.pool_norm(small.flatten(2).transpose(1, 2))  # [B, P, C]
        key, value = (self.by_head(part) for part in self.key_value(small).chunk(2, dim=-1))
        return F.normalize(key, dim=-1), value


def relative_coordinates(side: int, pool: int) -> Tensor:
    """Return how far each of `side`^2 tokens is from each of `pool`^2 pooled ones, [N, P, 2]."""
    tokens, pooled = grid(side) * (side - 1), (grid(pool) + 0.5 / pool) * (side - 1)
    offset = (tokens[:, None] - pooled[None]) / max(side - 1, 1)
    return offset.sign() * (8 * offset.abs() + 1).log2() / 3


def grid(side: int) -> Tensor:
    """Return the coordinates of side*side cells, row by row, from 0 to 1, [side*side, 2]."""
    steps = torch.arange(side) / side
    return torch.cartesian_prod(steps, steps)

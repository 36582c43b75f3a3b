"""Aggregated attention in the timings: tensors, our kernel, the formula in torch's operators."""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from tests.cuda import abi
from tests.gpu.attention import draw_gates
from tests.gpu.kernels import Bench
from tests.gpu.race import Entrant, Expected, TorchCall
from tests.gpu.stored_cases import Tolerance
from tests.gpu.workloads import AggregatedShape

OURS = "kernel"
WINDOW = 3
EPSILON = 1e-6


@dataclass(frozen=True)
class Tensors:
    """The inputs of MoHAggregatedAttention in its order, every optional one among them."""

    query: torch.Tensor  # [B, N, H*D], as are key and value
    key: torch.Tensor
    value: torch.Tensor
    pooled_key: torch.Tensor  # [B, P, H*D], as is pooled_value
    pooled_value: torch.Tensor
    gates: torch.Tensor  # [B, N, H]
    query_embedding: torch.Tensor  # [H, D]
    query_scale: torch.Tensor  # [H, N]
    window_bias: torch.Tensor  # [H, L]
    pooled_bias: torch.Tensor  # [H, N, P]
    window_tokens: torch.Tensor  # [H, D, L]
    window_offset: torch.Tensor  # [H, L]

    def all(self) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


def draw(
    shape: AggregatedShape, share: float, dtype: torch.dtype, rotated_bytes: int, device: str
) -> list[Tensors]:
    """Draw sets of tensors that have so many bytes together."""
    batch, heads, dim, pooled = shape.batch, shape.heads, shape.head_dim, shape.pooled
    tokens, window = shape.side**2, WINDOW**2
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("query", "key", "value"), (batch, tokens, heads * dim)
    )
    sizes |= dict.fromkeys(("pooled_key", "pooled_value"), (batch, pooled, heads * dim))
    sizes |= {"query_embedding": (heads, dim), "query_scale": (heads, tokens)}
    sizes |= {"window_bias": (heads, window), "pooled_bias": (heads, tokens, pooled)}
    sizes |= {"window_tokens": (heads, dim, window), "window_offset": (heads, window)}
    each = sum(map(math.prod, sizes.values())) * dtype.itemsize
    count = max(2, math.ceil(rotated_bytes / each))
    generator = torch.Generator(device).manual_seed(0)
    drawn = {
        name: torch.randn((count, *size), generator=generator, device=device).to(dtype)
        for name, size in sizes.items()
    }
    drawn["gates"] = draw_gates((count, batch, tokens, heads), share, generator, device).to(dtype)
    return [Tensors(**{name: tensor[i] for name, tensor in drawn.items()}) for i in range(count)]


def attend(*inputs: torch.Tensor) -> torch.Tensor:
    """Compute MoHAggregatedAttention (docs/ops.md) of square images, in the dtype of its inputs."""
    query, key, value, pooled_key, pooled_value, gates, *weights = inputs
    embedding, scale, window_bias, pooled_bias, tokens, offset = weights
    heads = gates.shape[2]
    query, key, value, pooled_key, pooled_value = (
        tensor.unflatten(2, (heads, -1)).transpose(1, 2)  # [B, H, N, D]
        for tensor in (query, key, value, pooled_key, pooled_value)
    )
    query, key, pooled_key = (F.normalize(t, dim=-1, eps=EPSILON) for t in (query, key, pooled_key))
    scored = (query + embedding[:, None]) * scale[..., None]
    windows, inside = _windows(key)
    window_scores = torch.einsum("bhnd,bhnld->bhnl", scored, windows) + window_bias[:, None]
    window_scores = window_scores.masked_fill(~inside, -math.inf)
    pooled_scores = scored @ pooled_key.transpose(-1, -2) + pooled_bias
    both = torch.cat([window_scores, pooled_scores], dim=-1).softmax(dim=-1)  # [B, H, N, L + P]
    window_weights, pooled_weights = both.split([inside.shape[-1], pooled_key.shape[2]], dim=-1)
    window_weights = window_weights + query @ tokens + offset[:, None]
    windows, _ = _windows(value)
    attended = torch.einsum("bhnl,bhnld->bhnd", window_weights, windows)
    attended = attended + pooled_weights @ pooled_value
    return (attended.transpose(1, 2) * gates[..., None]).flatten(2)


def _windows(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the window of each pixel [B, H, N, L, D], and which of its places are in the image."""
    side = math.isqrt(tokens.shape[2])
    image = tokens.unflatten(2, (side, side))
    padded = F.pad(image, (0, 0, WINDOW // 2, WINDOW // 2, WINDOW // 2, WINDOW // 2))
    views = [padded[:, :, y : y + side, x : x + side] for y, x in _places()]
    there = F.pad(
        torch.ones(side, side, dtype=torch.bool, device=tokens.device), (WINDOW // 2,) * 4
    )
    inside = torch.stack([there[y : y + side, x : x + side] for y, x in _places()], dim=-1)
    return torch.stack(views, dim=4).flatten(2, 3), inside.flatten(0, 1)


def _places() -> list[tuple[int, int]]:
    return [(y, x) for y in range(WINDOW) for x in range(WINDOW)]


def expected(tensors: Tensors, tolerance: Tolerance) -> Expected:
    """Return what the first set's output should be, computed in float64."""
    exact = attend(*(tensor.double() for tensor in tensors.all()))
    # Weights behind the softmax make outputs of several units: the tolerance grows with them.
    largest = max(1.0, float(exact.abs().max()) / 4)
    return Expected(exact, exact, Tolerance(tolerance.absolute * largest, tolerance.relative))


class KernelCall:
    """A call of our kernel: arguments are made once, a call only enqueues."""

    def __init__(self, bench: Bench, tensors: Tensors) -> None:
        self.output = torch.full_like(tensors.query, math.nan)
        self._bench, self._tensors = bench, tensors
        batch, tokens, width = tensors.query.shape
        heads, side = tensors.gates.shape[2], math.isqrt(tokens)
        pointers = dict(zip(abi.AGGREGATED_POINTERS, tensors.all(), strict=False))
        self._args = abi.AggregatedAttentionArgs(
            dtype=abi.DTYPES[str(self.output.dtype).removeprefix("torch.")],
            batch=batch,
            heads=heads,
            head_dim=width // heads,
            height=side,
            width=side,
            kernel_height=WINDOW,
            kernel_width=WINDOW,
            pooled=tensors.pooled_key.shape[1],
            normalize=True,
            epsilon=EPSILON,
            output=self.output.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in pointers.items()},
        )

    def __call__(self) -> None:
        self._bench.library.call(
            "moh_cuda_aggregated_attention", ctypes.byref(self._args), self._bench.device.stream()
        )


def entries(bench: Bench, sets: Sequence[Tensors]) -> dict[str, Callable[[], Entrant]]:
    """Return the candidates. A new one is a line here."""
    return {
        OURS: lambda: Entrant([KernelCall(bench, tensors) for tensors in sets], gated=True),
        "eager": lambda: _torch(attend, sets),
        "compile": lambda: _torch(bench.device.compiled(attend), sets),
    }


def _torch(function: Callable[..., torch.Tensor], sets: Sequence[Tensors]) -> Entrant:
    return Entrant([TorchCall(function, tensors.all()) for tensors in sets], gated=True)

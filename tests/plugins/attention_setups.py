"""Attention as it may come: sizes, masks and gates, from which a case is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from moh_deploy.ops.cases import Case, numpy_dtype
from moh_deploy.ops.spec import Arrays


@dataclass(frozen=True)
class MaskSetup:
    """An attn_mask.

    Attributes:
        dtype: bool, or that of an additive mask.
        axes: For each of [B, Hq, S, T] whether the mask has it; else its size is 1.
        rank: Axes in front that exceed it are left out; `axes` is False for them.
        pattern: A name in PATTERNS.
    """

    dtype: str = "bool"
    axes: tuple[bool, bool, bool, bool] = (False, False, True, True)
    rank: int = 2
    pattern: str = "random"

    def make(self, rng: np.random.Generator, sizes: tuple[int, int, int, int]) -> np.ndarray:
        shape = tuple(size if has else 1 for size, has in zip(sizes, self.axes, strict=True))
        seen = PATTERNS[self.pattern](rng, shape[-self.rank :])
        if self.dtype == "bool":
            return seen
        if self.pattern == "lowest":
            return np.where(seen, 0.0, np.finfo(np.float32).min)
        bias = np.zeros(seen.shape) if self.pattern == "all" else rng.standard_normal(seen.shape)
        return np.where(seen, bias, -np.inf)


Pattern = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.random(shape) < 0.67


def _without_first_keys(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Padding on the left: each leading index has its own."""
    first = rng.integers(0, shape[-1], (*shape[:-2], 1, 1) if len(shape) > 1 else 1)
    return np.broadcast_to(np.arange(shape[-1]) >= first, shape)


def _without_last_keys(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return _without_first_keys(rng, shape)[..., ::-1]


def _blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Whole blocks of keys are hidden from all queries, and some keys of the others from each."""
    blocks = np.repeat(rng.random(-(-shape[-1] // 24)) < 0.5, 24)[: shape[-1]]
    return _random(rng, shape) & blocks


def _window(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Each query sees a window of keys around its own share of the sequence."""
    queries = shape[-2] if len(shape) > 1 else 1
    centre = np.arange(queries)[:, None] * shape[-1] / queries
    window = np.abs(np.arange(shape[-1]) - centre) <= rng.integers(1, 40)
    return np.broadcast_to(window if len(shape) > 1 else window[0], shape)


def _blind_queries(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    seen = _random(rng, shape)
    seen[rng.random(shape[:-1]) < 0.4] = False
    return seen


def _finite_minimum(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Nobody is blind: for rows of nothing but the lowest number there is a case of its own."""
    seen = _random(rng, shape)
    seen[..., 0] = True
    return seen


PATTERNS: dict[str, Pattern] = {
    "random": _random,
    "no_first_keys": _without_first_keys,
    "no_last_keys": _without_last_keys,
    "blocks": _blocks,
    "window": _window,
    "blind": _blind_queries,
    "lowest": _finite_minimum,
    "all": lambda rng, shape: np.ones(shape, bool),
    "none": lambda rng, shape: np.zeros(shape, bool),
}

GATE_PATTERNS = ("share", "few", "all", "none", "one_row", "no_head_0", "negative", "nan")


@dataclass(frozen=True)
class AttentionSetup:
    """Sizes and options of a run; its text is the name of the case, and the seed of its numbers."""

    batch: int = 1
    seq_len: int = 20
    kv_len: int = 20
    kv_num_heads: int = 2
    group: int = 1
    head_dim: int = 8
    value_dim: int = 8
    rank: int = 3
    is_causal: bool = False
    scale: float = 1.0  # times head_dim ** -0.5
    dtype: str = "float32"
    gates: str = "share"
    mask: MaskSetup | None = None
    filled: bool = False  # to a length drawn for each batch

    @property
    def q_num_heads(self) -> int:
        return self.kv_num_heads * self.group

    @property
    def products(self) -> int:
        """What the reference has to multiply."""
        pairs = self.batch * self.q_num_heads * self.seq_len * self.kv_len
        return pairs * (self.head_dim + self.value_dim)

    def case(self) -> KernelCase:
        attributes = {
            "q_num_heads": self.q_num_heads,
            "kv_num_heads": self.kv_num_heads,
            "scale": self.scale * self.head_dim**-0.5,
            "is_causal": int(self.is_causal),
        }
        return KernelCase(
            name=repr(self),
            op="MoHAttention",
            why="drawn",
            attributes=attributes,
            build=self._inputs,
            dtype=self.dtype,
            score_bound=max(8.0, 8.0 * abs(self.scale)),
            mask_dtype=self.mask and self.mask.dtype,
        )

    def _inputs(self, rng: np.random.Generator) -> Arrays:
        query = rng.standard_normal((self.batch, self.q_num_heads, self.seq_len, self.head_dim))
        keys = (self.batch, self.kv_num_heads, self.kv_len)
        key = rng.standard_normal((*keys, self.head_dim))
        value = rng.standard_normal((*keys, self.value_dim))
        tensors = [query, key, value]
        if self.rank == 3:
            tensors = [_without_head_axis(tensor) for tensor in tensors]
        gates = (self.batch, self.seq_len, self.q_num_heads)
        tensors.append(make_gates(self.gates, rng, gates))
        if self.mask is not None:
            sizes = (self.batch, self.q_num_heads, self.seq_len, self.kv_len)
            tensors.append(self.mask.make(rng, sizes))
        return (*tensors, *self._lengths(rng, *tensors[1:3])) if self.filled else tuple(tensors)

    def _lengths(
        self, rng: np.random.Generator, key: np.ndarray, value: np.ndarray
    ) -> Iterator[np.ndarray | None]:
        """What follows gates or a mask; keys and values from there on become NaN."""
        if self.mask is None:
            yield None
        lengths = rng.integers(0, self.kv_len + 1, self.batch)
        for batch, length in enumerate(lengths):
            for tensor in (key, value):
                tensor[(batch, ..., slice(length, None), slice(None))] = np.nan
        yield lengths


def make_gates(pattern: str, rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Gates [B, S, H] of a pattern in GATE_PATTERNS."""
    gates = rng.uniform(0.25, 2.0, shape)
    share = {"few": 0.1, "all": 1.1, "no_head_0": 1.1, "none": -1.0}.get(pattern, 0.6)
    gates[rng.random(shape) >= share] = 0.0
    if pattern == "one_row":
        row = tuple(rng.integers(0, shape))
        gates[:], gates[row] = 0.0, 1.5
    elif pattern == "no_head_0":
        gates[..., 0] = 0.0
    elif pattern == "negative":
        gates *= -1.0  # a closed gate becomes -0.0
    elif pattern == "nan":
        gates[rng.random(shape) < 0.1] = np.nan
    return gates


@dataclass(frozen=True)
class KernelCase(Case):
    """A case whose mask may have another float type than the other inputs."""

    mask_dtype: str | None = None

    def inputs(self) -> tuple[np.ndarray | None, ...]:
        if self.mask_dtype is None:
            return super().inputs()
        wide = replace(self, dtype="float32", mask_dtype=None).inputs()
        others, mask, lengths = wide[:4], wide[4], wide[5:]
        with np.errstate(over="ignore"):  # float16 takes the lowest float32 for -inf
            narrow = mask.astype(numpy_dtype(self.mask_dtype))
        dtype = numpy_dtype(self.dtype)
        return (*(other.astype(dtype) for other in others), narrow, *lengths)


def _without_head_axis(array: np.ndarray) -> np.ndarray:
    batch, num_heads, length, dim = array.shape
    return array.transpose(0, 2, 1, 3).reshape(batch, length, num_heads * dim)

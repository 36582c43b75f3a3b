"""What the op benchmark runs: shapes, gates of an exact share, inputs and their float64 result."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  (teaches numpy the name bfloat16)
import numpy as np
import torch


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention.

    Attributes:
        seq_len: Queries.
        kv_len: Keys; more of them than queries is decoding with a cache.
    """

    name: str
    batch: int
    num_heads: int
    num_kv_heads: int
    seq_len: int
    kv_len: int
    head_dim: int
    is_causal: bool = False

    @property
    def is_decode(self) -> bool:
        """Whether keys and values are a cache [B, Hkv, T, D]; else all is [B, S, H*D]."""
        return self.kv_len != self.seq_len

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def query_shape(self) -> tuple[int, ...]:
        """Of Q and of the output; the gates are [B, S, H] always."""
        if self.is_decode:
            return (self.batch, self.num_heads, self.seq_len, self.head_dim)
        return (self.batch, self.seq_len, self.num_heads * self.head_dim)

    @property
    def cache_shape(self) -> tuple[int, ...]:
        """Of K and V."""
        if self.is_decode:
            return (self.batch, self.num_kv_heads, self.kv_len, self.head_dim)
        return (self.batch, self.kv_len, self.num_kv_heads * self.head_dim)

    def visible_keys(self) -> np.ndarray:
        """Return how many keys each query sees [S]."""
        if not self.is_causal:
            return np.full(self.seq_len, self.kv_len)
        return np.arange(self.kv_len - self.seq_len, self.kv_len) + 1

    def flops(self, gates: np.ndarray) -> int:
        """Count the floating-point operations of both products, for open gates [B, S, H] only."""
        open_pairs = np.count_nonzero(gates, axis=(0, 2))  # [S]
        return 4 * self.head_dim * int(open_pairs @ self.visible_keys())


def _prefill(name: str, *sizes: int, is_causal: bool = False) -> Shape:
    batch, num_heads, num_kv_heads, seq_len, head_dim = sizes
    return Shape(name, batch, num_heads, num_kv_heads, seq_len, seq_len, head_dim, is_causal)


def _decode(name: str, num_heads: int, num_kv_heads: int, kv_len: int, head_dim: int) -> Shape:
    return Shape(name, 1, num_heads, num_kv_heads, 1, kv_len, head_dim)


PREFILL = (
    _prefill("vit", 1, 16, 16, 196, 24),
    _prefill("dit", 2, 16, 16, 256, 72),
    _prefill("dit-24", 1, 24, 24, 256, 72),
    _prefill("llama-512", 1, 32, 8, 512, 128, is_causal=True),
    _prefill("generic-1k", 1, 32, 32, 1024, 64),
    _prefill("llama-2k", 1, 32, 8, 2048, 128, is_causal=True),
)
DECODE = (
    _decode("decode-mha-2k", 32, 32, 2048, 128),
    _decode("decode-gqa-2k", 32, 8, 2048, 128),
    _decode("decode-small", 12, 12, 512, 64),
)


def parse_shape(text: str) -> Shape:
    """Return a shape by its name, or one of your own from `B,H,Hkv,N,D` or `B,H,Hkv,N,D,causal`.

    Raises:
        ValueError: It is neither.
    """
    named = {shape.name: shape for shape in (*PREFILL, *DECODE)}
    if text in named:
        return named[text]
    sizes = text.removesuffix(",causal").split(",")
    if len(sizes) != 5 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(
            f"shape '{text}' is not known; expected one of {', '.join(named)},"
            " or five sizes B,H,Hkv,N,D, with ',causal' behind them for a causal mask."
        )
    if int(sizes[1]) % int(sizes[2]):
        raise ValueError(f"shape '{text}': H={sizes[1]} is not a multiple of Hkv={sizes[2]}.")
    return _prefill(text, *map(int, sizes), is_causal=text.endswith(",causal"))


@dataclass(frozen=True)
class InputSet:
    """One draw of inputs.

    Attributes:
        query, key, value: In the shape's layout and the dtype that is measured.
        gates: Share of active heads to gates [B, S, H].
        heads: Attention without gates in float64, [B, S, H, D].
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    gates: dict[float, np.ndarray]
    heads: np.ndarray

    def expected(self, shape: Shape, active: float) -> np.ndarray:
        """Return the output in float64, in the shape's layout."""
        weighted = self.heads * self.gates[active].astype(np.float64)[..., None]
        if shape.is_decode:
            weighted = weighted.transpose(0, 2, 1, 3)
        return weighted.reshape(shape.query_shape)


def draw_inputs(shape: Shape, active: Sequence[float], dtype: str, *, seed: int) -> InputSet:
    """Draw normal queries, keys and values, and gates for each share of active heads."""
    rng = np.random.default_rng([seed, zlib.crc32(shape.name.encode())])
    query = rng.standard_normal(shape.query_shape, dtype=np.float32).astype(dtype)
    key, value = (
        rng.standard_normal(shape.cache_shape, dtype=np.float32).astype(dtype) for _ in range(2)
    )
    gates = {share: draw_gates(shape, share, rng).astype(dtype) for share in active}
    return InputSet(query, key, value, gates, float64_heads(shape, query, key, value))


def draw_gates(shape: Shape, active: float, rng: np.random.Generator) -> np.ndarray:
    """Draw gates [B, S, H]: half of the active heads shared by all tokens, the others at random.

    Where `active * H` is no whole number some tokens have one head more than others, so that the
    share of open gates is `active` to within half a gate. Open gates are 0.5 to 1.5.
    """
    tokens = shape.batch * shape.seq_len
    counts = _heads_per_token(tokens, active * shape.num_heads, rng)  # [B*S]
    num_shared = math.floor(active * shape.num_heads / 2)
    rank = rng.random((tokens, shape.num_heads))
    rank[:, :num_shared] -= 1  # Shared heads come first.
    chosen = rank.argsort(axis=1).argsort(axis=1) < counts[:, None]
    gates = np.where(chosen, rng.uniform(0.5, 1.5, chosen.shape), 0)
    return gates.reshape(shape.batch, shape.seq_len, shape.num_heads).astype(np.float32)


def _heads_per_token(tokens: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    low = math.floor(mean)
    counts = np.full(tokens, low)
    counts[rng.permutation(tokens)[: round(tokens * mean) - tokens * low]] += 1
    return counts


def float64_heads(
    shape: Shape, query: np.ndarray, key: np.ndarray, value: np.ndarray
) -> np.ndarray:
    """Compute attention in float64, a head at a time: [B, S, H, D]."""
    hidden = np.arange(shape.kv_len) >= shape.visible_keys()[:, None]  # [S, T]
    query_BHSD = _by_head(query, shape.num_heads)
    key_BHTD, value_BHTD = (_by_head(array, shape.num_kv_heads) for array in (key, value))
    heads = np.empty((shape.batch, shape.seq_len, shape.num_heads, shape.head_dim))
    for b, h in np.ndindex(shape.batch, shape.num_heads):
        shared = h // (shape.num_heads // shape.num_kv_heads)
        scores = query_BHSD[b, h] @ key_BHTD[b, shared].T * shape.scale
        scores.masked_fill_(torch.from_numpy(hidden), -torch.inf)
        heads[b, :, h] = (scores.softmax(-1) @ value_BHTD[b, shared]).numpy()
    return heads


def _by_head(array: np.ndarray, num_heads: int) -> torch.Tensor:
    wide = torch.from_numpy(array.astype(np.float64))
    return wide if wide.ndim == 4 else wide.unflatten(-1, (num_heads, -1)).transpose(1, 2)

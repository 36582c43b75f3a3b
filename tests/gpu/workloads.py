"""What is timed: shapes, shares of open heads, dtypes. Without torch, for a plan needs none."""

from dataclasses import asdict, dataclass
from typing import Literal

from tests.gpu.steps import Json


@dataclass(frozen=True)
class AttentionShape:
    """An attention of [batch, queries, heads, head_dim]; keys are more in decoding.

    Attributes:
        hides: What else hides keys, as an exported model says it: a mask of padded keys
            [B, 1, 1, T], a mask of queries and keys [S, T] that says `causal`, ranges of a window
            of a quarter of the keys, or the lengths of a cache in place.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    causal: bool = False
    hides: Literal["", "padding", "mask", "window", "lengths"] = ""

    def tokens(self, sequence: int) -> int:
        """How many keys of a sequence are no padding: more of each than of the one before."""
        if self.hides not in ("padding", "lengths"):
            return self.keys
        return self.keys - (self.batch - sequence) * self.keys // (4 * self.batch)

    def seen(self, sequence: int, query: int) -> tuple[int, int]:
        """The first key that a query sees, and the end of those."""
        tokens = self.tokens(sequence)
        last = (tokens if self.hides == "lengths" else self.keys) - self.queries + query
        first = max(0, last - self.keys // 4 + 1) if self.hides == "window" else 0
        return first, min(tokens, last + 1) if self.causal else tokens

    def flops(self, share: float) -> float:
        """Operations of the two products, for a share of open heads."""
        seen = (self.seen(b, query) for b in range(self.batch) for query in range(self.queries))
        pairs = sum(end - first for first, end in seen)
        return 4 * self.heads * pairs * self.head_dim * share

    def json(self) -> dict[str, Json]:
        return asdict(self)


@dataclass(frozen=True)
class AggregatedShape:
    """An aggregated attention of square images, with windows of 3 x 3."""

    name: str
    batch: int
    heads: int
    side: int
    head_dim: int
    pooled: int

    def json(self) -> dict[str, Json]:
        return asdict(self)


@dataclass(frozen=True)
class RouterShape:
    """A router with logits of every kind: `shared` heads, `top_k` of `routed` others."""

    name: str
    tokens: int
    shared: int
    routed: int
    top_k: int

    def json(self) -> dict[str, Json]:
        return asdict(self)


@dataclass(frozen=True)
class Effort:
    """How long candidates are timed.

    Attributes:
        rotated_bytes: Tensors are not read again before so many bytes went through the cache; at
            least twice what it holds.
        calls: In a graph, at least: the start of a graph is not to count.
        repeats: Of a graph, at most.
    """

    rotated_bytes: int
    calls: int
    repeats: int

    def json(self) -> dict[str, Json]:
        return asdict(self)


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        every: One of so many contract cases goes through a tool that slows kernels down.
        plugin_every: The same for the plugin.
        last_offset: Elements between the first and last tokens of tensors that are far apart.
    """

    attention: tuple[AttentionShape, ...]
    decode: tuple[AttentionShape, ...]
    masked: tuple[AttentionShape, ...]
    aggregated: tuple[AggregatedShape, ...]
    router: tuple[RouterShape, ...]
    shares: tuple[float, ...]
    dtypes: tuple[str, ...]
    cases_every: int
    every: int
    plugin_every: int
    copy_bytes: int
    matrix_size: int
    effort: Effort
    last_offset: int


def _square(
    name: str, batch: int, heads: int, kv_heads: int, tokens: int, dim: int, causal: bool = False
) -> AttentionShape:
    return AttentionShape(name, batch, heads, kv_heads, tokens, tokens, dim, causal)


FULL = Sizes(
    # The same six that the CPU kernels are measured at.
    attention=(
        _square("LLaMA-2k", 1, 32, 8, 2048, 128, causal=True),
        _square("generic", 1, 32, 32, 1024, 64),
        _square("DiT", 2, 16, 16, 256, 72),
        _square("LLaMA-512", 1, 32, 8, 512, 128, causal=True),
        _square("ViT", 1, 16, 16, 196, 24),
        _square("DiT-24", 1, 24, 24, 256, 72),
    ),
    decode=(
        AttentionShape("decode", 1, 32, 8, 1, 4096, 128, causal=True),
        AttentionShape("decode-16", 16, 32, 8, 1, 2048, 128, causal=True),
    ),
    masked=(
        AttentionShape("LLaMA-2k-padding", 2, 32, 8, 2048, 2048, 128, True, "padding"),
        AttentionShape("LLaMA-2k-window", 1, 32, 8, 2048, 2048, 128, True, "window"),
        AttentionShape("LLaMA-2k-mask", 1, 32, 8, 2048, 2048, 128, True, "mask"),
        AttentionShape("decode-16-lengths", 16, 32, 8, 1, 2048, 128, True, "lengths"),
        AttentionShape("generic-padding", 2, 32, 32, 1024, 1024, 64, False, "padding"),
    ),
    # The first three stages of a pyramid of 224 x 224 pixels.
    aggregated=(
        AggregatedShape("pyramid-56", 8, 3, 56, 24, 49),
        AggregatedShape("pyramid-28", 8, 6, 28, 24, 49),
        AggregatedShape("pyramid-14", 8, 12, 14, 24, 49),
    ),
    router=(RouterShape("router-2k", 2048, 8, 24, 16), RouterShape("router-16k", 16384, 8, 24, 16)),
    shares=(0.75, 0.5, 1.0, 0.9, 0.25),
    dtypes=("float16", "bfloat16", "float32"),
    cases_every=1,
    every=23,
    plugin_every=9,
    copy_bytes=1 << 30,
    matrix_size=8192,
    effort=Effort(rotated_bytes=128 << 20, calls=16, repeats=30),
    last_offset=2**31,
)
"""In order of value: what comes first is measured even if time runs out."""

SMALL = Sizes(
    attention=(
        _square("LLaMA-small", 1, 4, 2, 20, 24, causal=True),
        _square("ViT-small", 2, 4, 4, 10, 24),
    ),
    decode=(AttentionShape("decode-small", 1, 4, 2, 1, 70, 24, causal=True),),
    masked=(
        AttentionShape("padding-small", 2, 4, 2, 20, 20, 24, True, "padding"),
        AttentionShape("window-small", 1, 4, 2, 20, 20, 24, True, "window"),
        AttentionShape("mask-small", 1, 4, 2, 20, 20, 24, True, "mask"),
        AttentionShape("lengths-small", 2, 4, 2, 1, 70, 24, True, "lengths"),
    ),
    aggregated=(AggregatedShape("pyramid-small", 1, 2, 5, 24, 4),),
    router=(RouterShape("router-small", 37, 2, 6, 4),),
    shares=(0.75, 1.0),
    dtypes=("float16", "float32"),
    cases_every=41,
    every=97,
    plugin_every=97,
    copy_bytes=1 << 16,
    matrix_size=32,
    effort=Effort(rotated_bytes=1, calls=2, repeats=2),
    last_offset=2**16,
)
"""For a rehearsal on the CPU."""

"""Predict how long a layer takes from its sizes.

A time is a sum of counts (multiply-adds, scores, elements that are moved, calls) times what each
costs. `benchmarks/cost_model.py` measures the costs; docs/tune.md says how well they predict.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moh_deploy.package import Choice, ComputeType, Runtime

# The sizes of a layer that its time is predicted from.


@dataclass(frozen=True)
class LayerShape:
    """Sizes of a layer at some sizes of the model's inputs."""

    batch: int  # sequences
    seq_len: int  # queries of each
    kv_len: int  # keys of each; of a layer with windows, pooled keys only
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads; fewer than `num_heads` for grouped queries
    head_dim: int  # size of a head
    num_shared_heads: int  # heads that every token chooses; the first ones
    active_share: float  # share of (token, head) pairs with an open gate
    is_causal: bool = False  # a query sees its own position and those before it
    has_mask: bool = False  # there is a mask or bias of scores
    # Width of what the queries are projected from; None if that projection is not the layer's to
    # choose.
    query_features: int | None = None
    output_features: int | None = None  # width of what the heads are projected to; or None
    window: int = 0  # neighbours that a query sees besides; 0 for ordinary attention

    @property
    def width(self) -> int:
        """Size of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def tokens(self) -> int:
        """Queries of all sequences."""
        return self.batch * self.seq_len

    @property
    def scores(self) -> int:
        """Scores of all heads, tokens and keys: what a dense layer computes."""
        return self.tokens * self.num_heads * (self.kv_len + self.window)

    @property
    def visible_share(self) -> float:
        """Share of (query, key) pairs where the query sees the key."""
        if not self.is_causal:
            return 1.0
        # The last query is at the last key: with a cache, earlier keys are seen by every query, and
        # the rest is a triangle with its diagonal (1 + 2 + ... + n pairs).
        seen_by_all = max(self.kv_len - self.seq_len, 0)
        triangle = min(self.seq_len, self.kv_len)
        seen = self.seq_len * seen_by_all + triangle * (triangle + 1) / 2
        return seen / (self.seq_len * self.kv_len)

    @property
    def read_kv_share(self) -> float:
        """Share of key and value heads that are read at all: by an open head of some query."""
        # Keys belong to one sequence, so only its own queries can make them be read.
        return self._used_share(self.num_heads // self.num_kv_heads, self.seq_len)

    @property
    def used_head_share(self) -> float:
        """Share of query heads that any token of any sequence chose."""
        # A weight is read for the whole batch: one token of any sequence is enough.
        return self._used_share(1, self.tokens)

    def _used_share(self, group: int, tokens: int) -> float:
        """Return the share of groups of neighbouring heads with an open one, routed at random."""
        routed = self.num_heads - self.num_shared_heads
        open_heads = self.active_share * self.num_heads - self.num_shared_heads
        # Of one routed head to be open for one token. Shared heads are open for all, so what is
        # left of the active share is spread over the routed heads, evenly by assumption.
        chance = min(max(open_heads / routed, 0.0), 1.0) if routed else 0.0
        used = 0.0
        for first in range(0, self.num_heads, group):
            # Shared heads come first: how many of them are in the group [first, first + group).
            shared = min(max(self.num_shared_heads - first, 0), group)
            # No routed head of the group is open for any token, all being drawn independently.
            unused = (1 - chance) ** ((group - shared) * tokens)
            used += 1.0 if shared and self.active_share else 1 - unused
        return used * group / self.num_heads


@dataclass(frozen=True)
class Platform:
    """The runtime and its settings that a predicted layer runs with: kernels, threads, dtypes."""

    instruction_set: str | None = None  # of the kernels, such as `avx2`; None for AVX-512
    threads: int = 1  # within an operator; they share everything but the cost of a call
    runtime: Runtime = "onnxruntime"
    precision: str = "float32"  # of the package
    compute_type: ComputeType = "float32"  # operands of the products in the attention kernel


Terms = Mapping[str, float]
"""What is counted to how much of it there is; or to what one of it costs, in nanoseconds."""

COSTS: Mapping[str, Terms] = {
    "dense_attention": {
        "call": 2800,
        "head": 191,
        "row": 73.9,
        "multiply-add": 0.0106,
        "score": 0.322,
        "masked score": 0.372,
        "element": 0.984,
    },
    "sparse_attention": {
        "gate": 15.5,
        "multiply-add": 0.0114,
        "score": 0.00734,
        "masked score": 0.492,
        "element": 0.34,
    },
    "dense_aggregated": {"call": 115000, "score": 1.75, "window element": 2.06},
    "sparse_aggregated": {"gate": 5.62, "multiply-add": 0.02, "element": 2.24},
    "dense_projection": {"call": 83.5, "multiply-add": 0.00953, "weight": 0.03},
    "sparse_projection": {"call": 309, "gate": 3.22, "multiply-add": 0.0108, "weight": 0.0263},
    # Where ONNX Runtime in float32 does not stand for all.
    "dense_attention, openvino": {
        "call": 5210,
        "head": 409,
        "row": 15.6,
        "multiply-add": 0.00698,
        "score": 0.35,
        "masked score": 0.2,
        "element": 2.03,
    },
    "dense_aggregated, openvino": {"call": 211000, "window element": 2.34},
    "dense_projection, openvino": {"call": 2070, "multiply-add": 0.0123, "weight": 0.181},
    "dense_projection, openvino, bfloat16": {
        "call": 2020,
        "multiply-add": 0.00575,
        "weight": 0.0821,
    },
    "sparse_attention, bfloat16": {
        "gate": 17.5,
        "multiply-add": 0.00577,
        "score": 0.0733,
        "masked score": 0.342,
        "element": 0.389,
    },
    "sparse_aggregated, openvino": {"call": 4760, "multiply-add": 0.0191, "element": 3.76},
    "sparse_aggregated, openvino, bfloat16": {
        "call": 5680,
        "multiply-add": 0.00478,
        "score": 0.463,
        "element": 2.92,
    },
}
"""Nanoseconds of each count that was not fitted to 0, by operator, runtime and dtype.

Source: `benchmarks/cost_model.py` with AVX-512 on one core of an AMD EPYC (Zen 5);
benchmarks/RESULTS.md has the figures.
"""

# Vectors of fewer lanes compute as many products in more instructions. Only AVX-512 was measured.
# AVX-512 has 16 lanes of float32, AVX2 has 8, the baseline (SSE2, NEON) has 4.
_VECTOR_SLOWDOWN = {"avx2": 2.0, "baseline": 4.0}
_VECTOR_WORK = ("multiply-add", "score", "masked score")


def milliseconds(shape: LayerShape, choice: Choice, platform: Platform = Platform()) -> float:
    """Predict what a layer takes with a choice.

    Args:
        shape: Its sizes.
        choice: How it is run.
        platform: What runs it.
    """
    slowdown = _VECTOR_SLOWDOWN.get(platform.instruction_set or "", 1.0)
    # Setting up an operator is done by one thread; what it computes is shared by all.
    call, work = 0.0, 0.0
    for kind, counts in _operators(shape, choice, platform.runtime):
        # Counts without an entry in COSTS were fitted to 0: they are counted to be fitted again.
        for name, cost in _costs(kind, platform).items():
            nanoseconds = cost * counts[name]
            if name == "call":
                call += nanoseconds
            else:
                work += nanoseconds * (slowdown if name in _VECTOR_WORK else 1.0)
    return (call + work / platform.threads) / 1e6


def _costs(kind: str, platform: Platform) -> Terms:
    """Return the costs of an operator: those of the runtime and dtype where it has its own."""
    # The kernel of attention rounds operands of products in packages of other dtypes, too.
    dtype = platform.compute_type if kind == "sparse_attention" else platform.precision
    runtime = platform.runtime
    names = (f"{kind}, {runtime}, {dtype}", f"{kind}, {runtime}", f"{kind}, {dtype}", kind)
    return next(COSTS[name] for name in names if name in COSTS)


def _operators(
    shape: LayerShape, choice: Choice, runtime: Runtime = "onnxruntime"
) -> Iterator[tuple[str, Terms]]:
    """Yield each operator's kind, and what it does."""
    # `sparse` and `projected` differ in their projections only: the attention is one kernel.
    attention = "dense" if choice == "dense" else "sparse"
    if shape.window:
        count = dense_aggregated if choice == "dense" else sparse_aggregated
        yield f"{attention}_aggregated", count(shape)
    else:
        count = dense_attention if choice == "dense" else sparse_attention
        yield f"{attention}_attention", count(shape)
    # A projection that is not the layer's to choose takes the same with every choice: it is left
    # out.
    for features in (shape.query_features, shape.output_features):
        # OpenVINO multiplies all heads: its extension has no kernel for projections.
        if features is not None and choice == "projected" and runtime == "onnxruntime":
            yield "sparse_projection", sparse_projection(shape, features)
        elif features is not None:
            yield "dense_projection", dense_projection(shape, features)


def dense_attention(shape: LayerShape) -> Terms:
    """Count what the function body of MoHAttention does."""
    # Standard operators compute all scores before a causal mask is applied: nothing is skipped.
    masked = shape.is_causal or shape.has_mask
    cache = shape.batch * shape.kv_len * shape.num_kv_heads * shape.head_dim
    return {
        "call": 1,
        "head": shape.batch * shape.num_heads,
        "row": shape.tokens * shape.num_heads,  # of scores: its softmax starts anew
        "multiply-add": 2 * shape.scores * shape.head_dim,  # Q K^T, and the weights times V
        "score": shape.scores,
        "masked score": shape.scores if masked else 0,
        "element": shape.tokens * shape.width + cache,
    }


def sparse_attention(shape: LayerShape) -> Terms:
    """Count what the kernel of MoHAttention does."""
    # The kernel visits neither closed heads nor keys behind a causal mask; only an explicit mask is
    # read for every score.
    scores = shape.active_share * shape.visible_share * shape.scores
    cache = shape.batch * shape.kv_len * shape.num_kv_heads * shape.head_dim
    return {
        "call": 1,
        "head": shape.batch * shape.num_heads if shape.active_share else 0,
        "gate": shape.tokens * shape.num_heads,
        "multiply-add": 2 * scores * shape.head_dim,
        "score": scores,
        "masked score": scores if shape.has_mask else 0,
        "element": shape.active_share * shape.tokens * shape.width + shape.read_kv_share * cache,
    }


def dense_aggregated(shape: LayerShape) -> Terms:
    """Count what the function body of MoHAggregatedAttention does.

    It copies the image once for each place of the window.
    """
    return {
        "call": 1,
        "multiply-add": 2 * shape.scores * shape.head_dim,
        "score": shape.scores,
        # Each place of the window is a Slice of the padded image, a copy of [B, N, H*D].
        "window element": shape.tokens * shape.width * shape.window,
        "element": shape.tokens * shape.width,
    }


def sparse_aggregated(shape: LayerShape) -> Terms:
    """Count what the kernel of MoHAggregatedAttention does, which reads windows in place."""
    scores = shape.active_share * shape.scores
    return {
        "call": 1,
        "gate": shape.tokens * shape.num_heads,
        "multiply-add": 2 * scores * shape.head_dim,
        "score": scores,
        "element": shape.tokens * shape.width,
    }


def dense_projection(shape: LayerShape, features: int) -> Terms:
    """Count what a matrix product of all heads with a weight does; `features` is its other side."""
    return {
        "call": 1,
        "multiply-add": shape.tokens * features * shape.width,
        "weight": features * shape.width,
    }


def sparse_projection(shape: LayerShape, features: int) -> Terms:
    """Count what the kernels of MoHQueryProjection and MoHOutputProjection do."""
    return {
        "call": 1,
        "gate": shape.tokens * shape.num_heads,
        "multiply-add": shape.active_share * shape.tokens * features * shape.width,
        # What a weight holds for a head that no token chose is not read.
        "weight": shape.used_head_share * features * shape.width,
    }

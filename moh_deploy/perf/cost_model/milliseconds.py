"""Predict how long a layer takes from its sizes.

A time is a sum of counts (multiply-adds, scores, elements that are moved, calls) times what each
costs. `benchmarks/cost_model.py` measures the costs; docs/tune.md says how well they predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moh_deploy.package import Choice
from moh_deploy.perf.cost_model.layer_shape import LayerShape

Terms = Mapping[str, float]
"""What is counted to how much of it there is; or to what one of it costs, in nanoseconds."""

COSTS: Mapping[str, Terms] = {
    "dense_attention": {
        "call": 15200,
        "multiply-add": 0.0116,
        "score": 1.08,
        "masked score": 3.66,
        "element": 1.6,
    },
    "sparse_attention": {"call": 1990, "gate": 13.9, "multiply-add": 0.0164, "element": 0.37},
    "dense_aggregated": {"call": 85200, "window element": 4.64},
    "sparse_aggregated": {"gate": 0.539, "multiply-add": 0.00147, "score": 1.36, "element": 3.41},
    "dense_projection": {"call": 1750, "multiply-add": 0.0122, "weight": 0.117},
    "sparse_projection": {"call": 1020, "gate": 10.4, "multiply-add": 0.0132, "weight": 0.074},
}
"""Nanoseconds of each count that was not fitted to 0.

Source: `benchmarks/cost_model.py`, 225 times of float32 with AVX-512 on one core of an Intel Xeon;
benchmarks/RESULTS.md has the figures.
"""

# Vectors of fewer lanes compute as many products in more instructions. Only AVX-512 was measured.
# AVX-512 has 16 lanes of float32, AVX2 has 8, the baseline (SSE2, NEON) has 4.
_VECTOR_SLOWDOWN = {"avx2": 2.0, "baseline": 4.0}
_VECTOR_WORK = ("multiply-add", "score", "masked score")


def milliseconds(
    shape: LayerShape, choice: Choice, *, instruction_set: str | None = None, threads: int = 1
) -> float:
    """Predict what a layer takes with a choice.

    Args:
        shape: Its sizes.
        choice: How it is run.
        instruction_set: What kernels run on, such as `avx2`; None for AVX-512.
        threads: Threads within an operator; they share everything but the cost of a call.
    """
    slowdown = _VECTOR_SLOWDOWN.get(instruction_set or "", 1.0)
    # Setting up an operator is done by one thread; what it computes is shared by all.
    call, work = 0.0, 0.0
    for kind, counts in _operators(shape, choice):
        # Counts without an entry in COSTS were fitted to 0: they are counted to be fitted again.
        for name, cost in COSTS[kind].items():
            nanoseconds = cost * counts[name]
            if name == "call":
                call += nanoseconds
            else:
                work += nanoseconds * (slowdown if name in _VECTOR_WORK else 1.0)
    return (call + work / threads) / 1e6


def _operators(shape: LayerShape, choice: Choice) -> Iterator[tuple[str, Terms]]:
    """Yield each operator's entry in COSTS, and what it does."""
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
        if features is not None and choice == "projected":
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

"""How much work skipping heads can save.

Counted: the two matrix products of an attention core, queries with keys and weights with values, at
the example's sizes. A multiply-add counts as two. Not counted: projections, router, softmax.
"""

from __future__ import annotations

from moh_deploy.package import LayerInfo


def attention_flops(layer: LayerInfo) -> int | None:
    """Return 4 * B * H * S * T * D, the dense cost of a layer's core; None if a size is unknown."""
    if layer.seq_len is None or layer.kv_len is None or layer.head_dim is None:
        return None
    tokens = layer.batch * layer.seq_len
    return 4 * tokens * layer.num_heads * layer.kv_len * layer.head_dim


def skippable_flops(layer: LayerInfo) -> int | None:
    """Return the part that belongs to heads no token chose; None if unknown, 0 if not replaced."""
    if not layer.replaced:
        return 0
    dense = attention_flops(layer)
    if dense is None or layer.active_share is None:
        return None
    return round(dense * (1 - layer.active_share))

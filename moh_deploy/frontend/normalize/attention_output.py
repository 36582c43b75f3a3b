"""Tell the output of an attention before anything is recognised."""

from __future__ import annotations

from torch.fx import Node

from moh_deploy.frontend.fx.graph import is_tensor, op, rank
from moh_deploy.frontend.fx.views import through_views

_PRODUCTS = frozenset(["matmul", "bmm", "einsum"])


def is_attention(node: Node) -> bool:
    """The product of a softmax with values, through views; fused or written out."""
    if not is_tensor(node) or rank(node) < 3:
        return False
    node = through_views(node)
    if op(node) == "scaled_dot_product_attention":
        return True
    return op(node) in _PRODUCTS and any(
        op(through_views(source)) == "softmax" for source in node.all_input_nodes
    )

"""Gates of heads in front of gates of channels: `attention * channels * heads` in the other order.

An op that skips closed heads computes `attention * heads`; what scales each channel comes behind.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import op, rank, shape, tensor
from moh_deploy.frontend.normalize.attention_output import is_attention

aten = torch.ops.aten

_PRODUCTS = ("mul", "multiply")


def put_gates_before_channels(node: Node) -> None:
    """Exchange the factors of `(attention * channels) * heads`, if a node is that."""
    outer = _product(node, lambda inner: op(inner) in _PRODUCTS and len(inner.users) == 1)
    inner = None if outer is None else _product(outer[0], is_attention)
    if outer is None or inner is None or _is_per_channel(node, outer[1]):
        return
    if _is_per_channel(outer[0], inner[1]):
        builder = GraphBuilder(node.graph, node)
        gated = builder.call(aten.mul.Tensor, inner[0], outer[1])
        node.replace_all_uses_with(builder.call(aten.mul.Tensor, gated, inner[1]))


def _product(node: Node, wanted: Callable[[Node], bool]) -> tuple[Node, Node] | None:
    """Read a product as a wanted tensor of its own size, and another factor."""
    product = contraction(node) if op(node) in _PRODUCTS else None
    for side in (0, 1) if product is not None else ():
        assert product is not None
        whole, factor = product.operands[side], product.operands[1 - side]
        alike = shape(whole) == shape(node) and tensor(whole).dtype == tensor(node).dtype
        if alike and whole is not factor and wanted(whole):
            return whole, factor
    return None


def _is_per_channel(product: Node, factor: Node) -> bool:
    """True for a factor that varies along the last dimension."""
    return rank(factor) > 0 and shape(factor)[-1] == shape(product)[-1] != 1

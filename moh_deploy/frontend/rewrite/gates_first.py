"""Apply the gates of projected heads before their projection, where it is a gated attention.

Where each head's output is projected on its own, its gate may come behind that:
`gate * (attention @ weight)` is `(gate * attention) @ weight`, summed over the heads or not.
"""

from dataclasses import replace

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout, flat, resolve
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, NotCoveredError, Operand
from moh_deploy.frontend.fx.graph import tensor
from moh_deploy.frontend.recognize.layer import HeadProjection, MoHLayer
from moh_deploy.frontend.rewrite.operands import Swap, arranged_like_views, arranged_operand

aten = torch.ops.aten


def apply_gates_first(
    layer: MoHLayer, projection: HeadProjection, gates: Node, builder: GraphBuilder
) -> tuple[MoHLayer, Swap]:
    """Insert the product of gates and attention, and its projection.

    Args:
        gates: [B, S, H].

    Returns:
        The layer whose node is the product of gates and attention, and the projection that takes
        over from the original one.

    Raises:
        NotCoveredError: If the projection differs between tokens.
    """
    groups = (layer.batch, layer.tokens, layer.heads, layer.core.value_axes)
    weight_axes = set(flat(projection.weight.layout))
    if weight_axes & {*layer.batch, *layer.tokens}:
        raise NotCoveredError("heads are projected by weights that differ between tokens")
    # [B, S, H, D] * [B, S, H, 1], and only then the projection of each head.
    attention = arranged_operand(LayoutBuilder(builder), projection.attention, groups)
    own_dtype = builder.cast(gates, tensor(attention).dtype)
    spread = builder.call(aten.unsqueeze.default, own_dtype, -1)  # [B, S, H, 1]
    gated = builder.call(aten.mul.Tensor, attention, spread)
    moved = replace(layer, node=gated, layout=resolve(groups), projection=None)
    # The projection of gated heads, in the layout of the original one.
    layouts = LayoutBuilder(GraphBuilder(layer.node.graph, layer.node.next))
    heads, inner, columns = layer.heads, layer.core.value_axes, projection.columns
    out_axes = set(flat(layer.layout))
    of_head = bool(weight_axes & set(heads))
    wanted: Layout = (heads, inner, columns) if of_head else (inner, columns)
    weight = layouts.arrange(projection.weight, wanted)
    summed = not set(heads) <= out_axes
    # d: what a head has; c: what it is projected to.
    equation = f"bshd,{'hdc' if of_head else 'dc'}->{'bsc' if summed else 'bshc'}"
    product = layouts.builder.call(aten.einsum.default, equation, [gated, weight])
    out: Layout = (layer.batch, layer.tokens, *([] if summed else [heads]), columns)
    result = arranged_like_views(layouts, Operand(product, out), layer.layout)
    result = layouts.builder.cast(result, tensor(layer.node).dtype)
    return moved, Swap(layer.node, result, "gates applied first")

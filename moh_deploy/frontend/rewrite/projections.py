"""Take the projections around an attention into ops that skip what no token chose.

A query that only the attention reads need not be computed where the gate is 0, if the gates do not
depend on it. A linear map that alone reads the gated heads need not read those of a gate of 0.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::query_projection
from moh_deploy.frontend.fx.axes import Layout, flat, resolve
from moh_deploy.frontend.fx.builder import (
    GraphBuilder,
    LayoutBuilder,
    NotCoveredError,
    Operand,
    UnknownSizeError,
)
from moh_deploy.frontend.fx.graph import op, rank, tensor
from moh_deploy.frontend.fx.views import casts, forward, history, is_view
from moh_deploy.frontend.recognize.layer import HeadProjection, MoHLayer
from moh_deploy.frontend.recognize.projection import Projection, ReadProjection
from moh_deploy.frontend.rewrite import rewritten
from moh_deploy.frontend.rewrite.rewritten import (
    HeadAxes,
    Swap,
    arranged_like_views,
    arranged_operand,
)
from moh_deploy.ops import op_names

aten = torch.ops.aten


def project_query(
    layer: MoHLayer,
    attention: Node,
    gates: Node,
    axes: HeadAxes,
    *,
    read: ReadProjection,
    swaps: Sequence[rewritten.Swap],
) -> Node | None:
    """Let an attention read a MoHQueryProjection, if its query is a projection that only it reads.

    Args:
        attention: The inserted attention; its first argument is the query.
        gates: [B, S, H], an argument of the attention.

    Returns:
        The MoHQueryProjection, or None.
    """
    # A MoHQueryProjection makes [B, S, H*D]; an attention that reads heads first lacks it.
    query, *others = (node for node in attention.args if isinstance(node, Node))
    if rank(query) != 3:
        return None
    node, layout = history(query, axes.query(packed=True))[-1]
    projection = read(node)
    if projection is None:
        return None
    # Neither keys, values, gates nor masks may be computed of the query.
    readers = rewritten.readers_up_to(node, layer.end, swaps)
    if readers is None or not readers.isdisjoint(others):
        return None
    layouts = LayoutBuilder(GraphBuilder(attention.graph, attention))
    result = _query_projection(layouts, Operand(node, layout), projection, axes, gates)
    if result is not None:
        attention.update_arg(0, result)
    return result


def _query_projection(
    layouts: LayoutBuilder, query: Operand, projection: Projection, axes: HeadAxes, gates: Node
) -> Node | None:
    # x [B, S, C] @ weight [C, H*D]: every row of the query is made of one row of x.
    x, weight = projection.operands(query.layout)
    inner = tuple(axis for axis in flat(x.layout) if axis not in set(flat(query.layout)))
    columns = axes.query(packed=True)[2]
    rows = {*axes.batch, *axes.tokens}
    if set(flat(x.layout)) != {*rows, *inner} or set(flat(weight.layout)) != {*inner, *columns}:
        return None
    bias = projection.bias_of(query.layout)
    return layouts.builder.call(
        torch.ops.moh.query_projection.default,
        rewritten.arranged_operand(layouts, x, (axes.batch, axes.tokens, inner)),
        layouts.arrange(weight, (inner, columns)),
        gates,
        None if bias is None else layouts.arrange(bias, (columns,)),
        axes.num_heads,
    )


def project_output(
    layer: MoHLayer, attention: Operand, gates: Node, axes: HeadAxes, *, read: ReadProjection
) -> rewritten.Swap | None:
    """Insert a MoHOutputProjection beside the linear map of a layer's gated heads, if nothing else
    reads them.
    """
    found = _linear_reader(layer, read)
    if found is None or tensor(attention.node).dtype != tensor(layer.node).dtype:
        return None
    # [B, S, H*Dv] @ [H*Dv, C]: a gate of 0 makes Dv terms of each sum 0, which need not be added.
    projection, read_layout = found
    weight_layout, out = projection.product.layouts(read_layout, 0)
    weight = Operand(projection.weight, resolve(weight_layout))
    inner = axes.output(packed=True)[2]
    columns = tuple(axis for axis in flat(out) if axis in set(flat(weight.layout)))
    rows = {*axes.batch, *axes.tokens}
    if set(flat(out)) != {*rows, *columns} or set(flat(weight.layout)) != {*inner, *columns}:
        return None
    layouts = LayoutBuilder(GraphBuilder(attention.node.graph, projection.node))
    bias = projection.bias_of(out)
    try:
        result = layouts.builder.call(
            torch.ops.moh.output_projection.default,
            layouts.arrange(attention, axes.output(packed=True)),
            layouts.arrange(weight, (inner, columns)),
            gates,
            None if bias is None else layouts.arrange(bias, (columns,)),
            axes.num_heads,
        )
        result = rewritten.arranged_like_views(
            layouts, Operand(result, (axes.batch, axes.tokens, columns)), out
        )
    except UnknownSizeError:
        return None
    return rewritten.Swap(projection.node, result, op_names.OUTPUT_PROJECTION)


def _linear_reader(layer: MoHLayer, read: ReadProjection) -> tuple[Projection, Layout] | None:
    """The linear map that alone reads the gated heads, and the layout in which it reads them."""
    # Forward through views, as long as there is one reader: ungated heads have no other reader.
    node, layout = layer.node, layer.layout
    while len(node.users) == 1:
        (user,) = node.users
        projection = read(user)
        if projection is not None and projection.x is node:
            # A bias may be added behind it.
            behind = list(user.users) if projection.bias is None else []
            found = read(behind[0]) if len(behind) == 1 and op(behind[0]) == "add" else None
            is_same = found is not None and found.product == projection.product
            return found if found is not None and is_same else projection, layout
        moved = forward(user, layout) if is_view(user) and not casts(user) else None
        if moved is None:
            return None
        node, layout = user, moved
    return None


# Apply the gates of projected heads before their projection, where it is a gated attention.
#
# Where each head's output is projected on its own, its gate may come behind that: `gate *
# (attention @ weight)` is `(gate * attention) @ weight`, summed over the heads or not.


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

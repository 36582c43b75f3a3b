"""Put a MoHAggregatedAttention beside the windowed-and-pooled attention that it computes."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::aggregated_attention
from moh_deploy.frontend.fx.axes import leaves, product
from moh_deploy.frontend.fx.builder import GraphBuilder, NotCoveredError, Operand
from moh_deploy.frontend.fx.graph import add_constant, tensor
from moh_deploy.frontend.fx.slices import Piece, trail_of
from moh_deploy.frontend.recognize.aggregated import Aggregated, WindowSource
from moh_deploy.frontend.rewrite.operands import OperandBuilder
from moh_deploy.frontend.rewrite.rewritten import HeadAxes, Rewrite
from moh_deploy.ops import op_names

_DEFAULT_EPSILON = 1e-12
# A bias for each pixel and pooled token grows with the square of the image.
_LARGEST_CONSTANT_BYTES = 1 << 28
# In the order of the op's inputs.
_CONSTANTS = (
    *("query_embedding", "query_scale", "window_bias"),
    *("pooled_bias", "window_tokens", "window_offset"),
)


def insert_aggregated(
    rewrite: Rewrite,
    program: ExportedProgram,
    form: Aggregated,
    gates: Node,
    builder: GraphBuilder,
    alone: Callable[[Piece], Piece],
) -> Rewrite:
    """Insert the MoHAggregatedAttention of one layer.

    Args:
        form: The layer as the op computes it.
        gates: [B, N, H].
        builder: Inserts in front of the node after the layer's product with the gates.
        alone: Gives a cut of a packed projection as a projection of its own, where there is one.

    Returns:
        The rewrite, with the op and the node whose value replaces the layer's product with its
        gates.
    """
    layer, window = rewrite.layer, form.window
    dtype = tensor(layer.core.output.node).dtype
    operands = OperandBuilder(builder, dtype)
    axes = HeadAxes(
        batch=leaves(layer.batch),
        tokens=leaves(form.query.rows),
        heads=leaves(layer.heads),
        head_dim=leaves(form.query.head_dim),
        value_dim=leaves(form.value.head_dim),
    )

    def rows(source: WindowSource) -> Node:
        """[B, rows, H*D]: rows are pixels, or pooled tokens."""
        piece = source.piece
        # A cut of a packed projection may have been split off as a projection of its own by now.
        trail = [piece] if piece.cuts else trail_of(Operand(piece.node, piece.layout))
        layout = (layer.batch, source.rows, (*layer.heads, *source.head_dim))
        return operands.operand([*map(alone, trail)], layout)

    def constant(name: str) -> Node | None:
        """A constant of the form; None where it changes nothing."""
        value: Tensor | None = getattr(form, name)
        if value is None:
            return None
        if value.numel() * dtype.itemsize > _LARGEST_CONSTANT_BYTES:
            raise NotCoveredError(
                f"its {name.replace('_', ' ')} has {value.numel()} elements, more than are stored"
            )
        path = "_".join(layer.path.split(".")) or "model"
        return add_constant(program, f"{path}_{name}", value.to(dtype))

    sources = (form.query, form.key, form.value, form.pooled_key, form.pooled_value)
    output = builder.call(
        torch.ops.moh.aggregated_attention.default,
        *map(rows, sources),
        operands.cast(gates),
        *map(constant, _CONSTANTS),
        axes.num_heads,
        window.height,
        window.width,
        window.kernel_height,
        window.kernel_width,
        form.epsilon is not None,
        _DEFAULT_EPSILON if form.epsilon is None else form.epsilon,
    )
    # A token sees the keys of its window and the pooled ones.
    pooled = int(product(leaves(form.pooled_key.rows)))
    return replace(
        rewrite,
        op=op_names.AGGREGATED_ATTENTION,
        attention=output,
        replacement=operands.replacement(output, axes.output(packed=True), layer),
        axes=axes,
        num_kv_heads=axes.num_heads,
        head_dim=int(product(axes.value_dim)),
        kv_len=window.kernel_height * window.kernel_width + pooled,
    )

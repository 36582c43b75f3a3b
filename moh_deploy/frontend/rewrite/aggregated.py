"""Put a MoHAggregatedAttention beside the windowed-and-pooled attention that it computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::aggregated_attention
from moh_deploy.frontend.fx.axes import Layout, leaves, product
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.constant_inputs import add_constant
from moh_deploy.frontend.fx.graph import tensor
from moh_deploy.frontend.fx.not_covered import NotCoveredError
from moh_deploy.frontend.fx.operand import Operand
from moh_deploy.frontend.fx.slices import Piece
from moh_deploy.frontend.recognize.aggregated import Aggregated, WindowSource
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.rewrite.operands import OperandBuilder, trail_of
from moh_deploy.frontend.rewrite.projections import HeadAxes

_DEFAULT_EPSILON = 1e-12
# A bias for each pixel and pooled token grows with the square of the image.
_LARGEST_CONSTANT_BYTES = 1 << 28


class AggregatedRewriter:
    """Builds the MoHAggregatedAttention of one layer, from the tensors of the original graph.

    Args:
        builder: Inserts in front of the node after the layer's product with the gates.
        alone: Gives a cut of a packed projection as a projection of its own, where there is one.
    """

    def __init__(
        self,
        program: ExportedProgram,
        layer: MoHLayer,
        form: Aggregated,
        builder: GraphBuilder,
        alone: Callable[[Piece], Piece] = lambda piece: piece,
    ) -> None:
        self._program, self._layer, self._form, self._builder = program, layer, form, builder
        self._alone = alone
        self._dtype = tensor(layer.core.output.node).dtype
        self._operands = OperandBuilder(builder, self._dtype)

    def build(self, gates: Node) -> tuple[Node, Node]:
        """Insert the MoHAggregatedAttention.

        Args:
            gates: [B, N, H].

        Returns:
            It, and the node whose value replaces the layer's product with its gates.

        Raises:
            NotCoveredError: With the reason.
        """
        # Rows are pixels, [B, N, H*D], or pooled tokens, [B, P, H*D]; a constant is None where it
        # changes nothing.
        form, window = self._form, self._form.window
        output = self._builder.call(
            torch.ops.moh.aggregated_attention.default,
            self._rows(form.query),
            self._rows(form.key),
            self._rows(form.value),
            self._rows(form.pooled_key),
            self._rows(form.pooled_value),
            self._operands.cast(gates),
            self._constant("query_embedding", form.query_embedding),
            self._constant("query_scale", form.query_scale),
            self._constant("window_bias", form.window_bias),
            self._constant("pooled_bias", form.pooled_bias),
            self._constant("window_tokens", form.window_tokens),
            self._constant("window_offset", form.window_offset),
            self.num_heads,
            window.height,
            window.width,
            window.kernel_height,
            window.kernel_width,
            form.epsilon is not None,
            _DEFAULT_EPSILON if form.epsilon is None else form.epsilon,
        )
        layout = self._layout(form.value)
        return output, self._operands.replacement(output, layout, self._layer)

    @property
    def axes(self) -> HeadAxes:
        layer, form = self._layer, self._form
        return HeadAxes(
            batch=leaves(layer.batch),
            tokens=leaves(form.query.rows),
            heads=leaves(layer.heads),
            head_dim=leaves(form.query.head_dim),
            value_dim=leaves(form.value.head_dim),
        )

    @property
    def num_heads(self) -> int:
        return int(product(leaves(self._layer.heads)))

    @property
    def head_dim(self) -> int:
        return int(product(leaves(self._form.value.head_dim)))

    @property
    def kv_len(self) -> int:
        """Keys that a token sees: those of its window and the pooled ones."""
        window, pooled = self._form.window, product(leaves(self._form.pooled_key.rows))
        return window.kernel_height * window.kernel_width + int(pooled)

    def _rows(self, source: WindowSource) -> Node:
        """[B, rows, H*D]."""
        piece = source.piece
        # A cut of a packed projection may have been split off as a projection of its own by now.
        trail = [piece] if piece.cuts else trail_of(Operand(piece.node, piece.layout))
        return self._operands.operand([*map(self._alone, trail)], self._layout(source))

    def _layout(self, source: WindowSource) -> Layout:
        return (self._layer.batch, source.rows, (*self._layer.heads, *source.head_dim))

    def _constant(self, name: str, value: Tensor | None) -> Node | None:
        if value is None:
            return None
        if value.numel() * self._dtype.itemsize > _LARGEST_CONSTANT_BYTES:
            raise NotCoveredError(
                f"its {name.replace('_', ' ')} has {value.numel()} elements, more than are stored"
            )
        path = "_".join(self._layer.path.split(".")) or "model"
        return add_constant(self._program, f"{path}_{name}", value.to(self._dtype))

"""Query, key and value of a MoHAttention: packed [B, S, H*D] where that saves Transposes."""

from __future__ import annotations

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout, flat
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.operand import Operand
from moh_deploy.frontend.fx.views import casts, forward, is_view
from moh_deploy.frontend.recognize.cores.core import Scores
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.rewrite.attention_form import AttentionForm
from moh_deploy.frontend.rewrite.operands import OperandBuilder, entry
from moh_deploy.frontend.rewrite.tokens_first import Moves, Reader, Reorderer

aten = torch.ops.aten

QueryKeyValue = tuple[Node, Node, Node]


class AttentionInputs:
    """Inserts what one MoHAttention reads.

    Args:
        scores: Of the layer, with all numbers that scale query or key in their scale.
        operands: Brings tensors into layouts and into the op's dtype.
        reader: What the layer's operands are made of.
    """

    def __init__(
        self,
        layer: MoHLayer,
        scores: Scores,
        form: AttentionForm,
        builder: GraphBuilder,
        operands: OperandBuilder,
        reader: Reader,
    ) -> None:
        self._layer, self._scores, self._form = layer, scores, form
        self._builder, self._operands, self._reader = builder, operands, reader
        self._reorderer = Reorderer(builder, operands, reader)
        self._read = (scores.query, scores.key, layer.core.value)

    def build(self) -> tuple[bool, QueryKeyValue]:
        """Insert query, key and value, and tell whether they are packed.

        Raises:
            NotCoveredError: With the reason.
        """
        # The op takes [B, S, H*D] and [B, H, S, D]. A Transpose moves every number once through
        # memory, so the form with fewer of them is taken, or the packed one if the model has it.
        if self._num_moves(packed=True) < self._num_moves(packed=False) or self._are_packed():
            return True, self._packed()
        return False, self._unpacked()

    def _are_packed(self) -> bool:
        """True where the model has all three packed already."""
        operands = zip(self._read, self._form.inputs(packed=True), strict=True)
        return not self._scores.factors and all(self._is_packed(*operand) for operand in operands)

    def _is_packed(self, operand: Operand, layout: Layout) -> bool:
        return entry(self._reader.trail(operand), layout) is not None

    def _num_moves(self, *, packed: bool) -> int:
        """The number of tensors that every run transposes, the attention's result included."""
        moves: Moves = frozenset()
        for operand, layout in zip(self._read, self._form.inputs(packed=packed), strict=True):
            if not (packed and self._is_packed(operand, layout)):
                moves |= self._reorderer.moves(operand, flat(layout))
        for factor in self._scores.factors:
            moves |= self._reorderer.moves(factor.operand, flat(self._rows(packed=packed)[:3]))
        # The output has the order of the inputs: where readers want the other one, it is moved as
        # well.
        return len(moves) + (self._order_read() != flat(self._form.output(packed=packed)))

    def _order_read(self) -> tuple[object, ...]:
        """The order in which the model reads the gated attention."""
        node, layout = self._layer.node, self._layer.layout
        while len(node.users) == 1:
            (user,) = node.users
            moved = forward(user, layout) if is_view(user) and not casts(user) else None
            if moved is None:
                break
            node, layout = user, moved
        return flat(layout)

    def _rows(self, *, packed: bool) -> Layout:
        """The layout of the query with one dimension for the heads and one for the tokens."""
        form = self._form
        heads_first = (form.batch, form.heads, form.tokens, form.head_dim)
        return (form.batch, form.tokens, form.heads, form.head_dim) if packed else heads_first

    def _packed(self) -> QueryKeyValue:
        (query, key, value), layouts = self._read, self._form.inputs(packed=True)
        whole = self._scaled_query if self._scores.factors else self._whole
        return (
            whole(query, layouts[0]),
            self._whole(key, layouts[1]),
            self._whole(value, layouts[2]),
        )

    def _whole(self, operand: Operand, layout: Layout) -> Node:
        if self._is_packed(operand, layout):
            return self._operands.operand(self._reader.trail(operand), layout)
        built = self._reorderer.build(operand, flat(layout))
        return self._operands.cast(self._operands.arrange(built, layout))

    def _scaled_query(self, operand: Operand, layout: Layout) -> Node:
        rows = self._rows(packed=True)
        query = self._operands.arrange(self._reorderer.build(operand, flat(layout)), rows)
        return self._operands.arrange(Operand(self._scaled(query, rows), rows), layout)

    def _unpacked(self) -> QueryKeyValue:
        query, key, value = (
            self._operands.operand(self._reader.trail(operand), layout)
            for operand, layout in zip(self._read, self._form.inputs(packed=False), strict=True)
        )
        return self._scaled(query, self._rows(packed=False)), key, value

    def _scaled(self, query: Node, rows: Layout) -> Node:
        """The query with the tensors that scale the scores equally for all keys."""
        for factor in self._scores.factors:
            # [B, S, H, 1] or [B, H, S, 1]: a factor has no head dimension.
            found = self._reorderer.build(factor.operand, flat(rows[:3]))
            multiplier = self._operands.arrange(found, (*rows[:3], ()), expand=False)
            operator = aten.div.Tensor if factor.divides else aten.mul.Tensor
            query = self._operands.cast(self._builder.call(operator, query, multiplier))
        return query

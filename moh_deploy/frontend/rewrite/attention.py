"""Put a MoHAttention beside the attention it computes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch.fx import Node

from moh_deploy.frontend import torch_ops  # noqa: F401  registers moh::attention
from moh_deploy.frontend.fx.axes import Layout, Size, flat, leaves, product
from moh_deploy.frontend.fx.builder import GraphBuilder, NotCoveredError, Operand
from moh_deploy.frontend.fx.graph import example_shape, tensor
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.slices import trail_of
from moh_deploy.frontend.fx.views import casts, forward, is_view
from moh_deploy.frontend.recognize.layer import MaskTerm, MoHLayer, Scores
from moh_deploy.frontend.recognize.mask_structure import CAUSAL, MaskStructure
from moh_deploy.frontend.rewrite import rewritten
from moh_deploy.frontend.rewrite.tokens_first import Moves, Reader, Reorderer
from moh_deploy.frontend.rewrite.visible_keys import insert_padding, insert_ranges
from moh_deploy.ops import op_names

# Padding and key_ranges, by what they were inserted for.
InsertedMasks = dict[tuple[MaskStructure, Size, Size], tuple[Node | None, Node | None]]

# Query, key and value of a MoHAttention: packed [B, S, H*D] where that saves Transposes.

QueryKeyValue = tuple[Node, Node, Node]


class AttentionInputs:
    """Inserts what one MoHAttention reads.

    Args:
        scores: Of the layer, with all numbers that scale query or key in their scale.
        reader: What the layer's operands are made of.
    """

    def __init__(
        self,
        layer: MoHLayer,
        scores: Scores,
        form: rewritten.AttentionForm,
        builder: GraphBuilder,
        operands: rewritten.OperandBuilder,
        reader: Reader,
    ) -> None:
        self._layer, self._scores, self._form = layer, scores, form
        self._builder, self._operands, self._reader = builder, operands, reader
        self._reorderer = Reorderer(builder, operands, reader)
        self._read = (scores.query, scores.key, layer.core.value)

    def build(self) -> tuple[bool, QueryKeyValue]:
        """Insert query, key and value, and tell whether they are packed."""
        # The op takes [B, S, H*D] and [B, H, S, D]. A Transpose moves every number once through
        # memory, so the form with fewer of them is taken, or the packed one if the model has it.
        operands = zip(self._read, self._form.inputs(packed=True), strict=True)
        has_packed = not self._scores.factors and all(self._is_packed(*each) for each in operands)
        if has_packed or self._num_moves(packed=True) < self._num_moves(packed=False):
            return True, self._packed()
        query, key, value = (
            self._operands.operand(self._reader.trail(operand), layout)
            for operand, layout in zip(self._read, self._form.inputs(packed=False), strict=True)
        )
        return False, (self._scaled(query, self._rows(packed=False)), key, value)

    def _packed(self) -> QueryKeyValue:
        def whole(operand: Operand, layout: Layout) -> Node:
            if self._is_packed(operand, layout):
                return self._operands.operand(self._reader.trail(operand), layout)
            built = self._reorderer.build(operand, flat(layout))
            return self._operands.cast(self._operands.arrange(built, layout))

        (query, key, value), layouts = self._read, self._form.inputs(packed=True)
        if not self._scores.factors:
            return whole(query, layouts[0]), whole(key, layouts[1]), whole(value, layouts[2])
        # The tensors that scale the query have a dimension of heads: [B, S, H, 1].
        rows = self._rows(packed=True)
        apart = self._operands.arrange(self._reorderer.build(query, flat(layouts[0])), rows)
        scaled = self._operands.arrange(Operand(self._scaled(apart, rows), rows), layouts[0])
        return scaled, whole(key, layouts[1]), whole(value, layouts[2])

    def _is_packed(self, operand: Operand, layout: Layout) -> bool:
        return rewritten.entry(self._reader.trail(operand), layout) is not None

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

    def _scaled(self, query: Node, rows: Layout) -> Node:
        """The query with the tensors that scale the scores equally for all keys."""
        for factor in self._scores.factors:
            # [B, S, H, 1] or [B, H, S, 1]: a factor has no head dimension.
            found = self._reorderer.build(factor.operand, flat(rows[:3]))
            multiplier = self._operands.arrange(found, (*rows[:3], ()), expand=False)
            operator = aten.div.Tensor if factor.divides else aten.mul.Tensor
            query = self._operands.cast(self._builder.call(operator, query, multiplier))
        return query


aten = torch.ops.aten


# Any score added to this is this, in float32: its 24 bits end far above 1. It is no infinity: a row
# of it has a softmax. The same holds of 1e16 times a number that hides, HIDING_FILL or less.
_ABSORBING = -1e30


class AttentionRewriter:
    """Builds the MoHAttention of one layer, from the tensors of the original graph.

    Args:
        rewrite: Of a layer without obstacles; its swaps are parts of packed projections.
        builder: Inserts in front of the node after the layer's product with the gates.
        known: Values that do not depend on the model's inputs.
        structure: Of the layer's masks, where it is known.
        inserted: What was inserted for the structures of layers before this one.
    """

    def __init__(
        self,
        rewrite: rewritten.Rewrite,
        builder: GraphBuilder,
        known: KnownValues,
        structure: MaskStructure | None = None,
        inserted: InsertedMasks | None = None,
    ) -> None:
        layer = rewrite.layer
        assert layer.core.scores is not None
        self._rewrite, self._layer, self._builder, self._known = rewrite, layer, builder, known
        self._structure = structure
        self._inserted = {} if inserted is None else inserted
        query, first = rewritten.unscaled(layer.core.scores.query, known)
        key, second = rewritten.unscaled(layer.core.scores.key, known)
        scale = layer.core.scores.scale * first * second
        self._scores = replace(layer.core.scores, query=query, key=key, scale=scale)
        self._twins = {swap.old: swap.new for swap in rewrite.swaps}
        operands = (self._scores.query, self._scores.key, layer.core.value)
        self._trails = [trail_of(operand, self._twins) for operand in operands]
        self._operands = rewritten.OperandBuilder(builder, tensor(layer.core.output.node).dtype)
        self.form = self._form()
        # Only then do torch's causal rule (first token, first key) and ONNX's (last, last) agree.
        self._is_square = bool(product(self.form.tokens) == product(self.form.keys))

    def build(self, gates: Node) -> rewritten.Rewrite:
        """Insert the MoHAttention node.

        Args:
            gates: [B, S, Hq].

        Returns:
            The rewrite, with the MoHAttention and the node whose value replaces the layer's
            product with its gates.
        """
        form, operands = self.form, self._operands
        inputs = AttentionInputs(
            self._layer, self._scores, form, self._builder, operands, self._reader(gates)
        )
        packed, (query, key, value) = inputs.build()
        mask, ranges, is_causal = self._visible_keys()
        output = self._builder.call(
            torch.ops.moh.attention.default,
            query,
            key,
            value,
            operands.cast(gates),
            mask,
            None,
            ranges,
            form.num_heads,
            int(product(form.kv_heads)),
            self._scores.scale,
            is_causal,
        )
        return replace(
            self._rewrite,
            op=op_names.ATTENTION,
            attention=output,
            replacement=operands.replacement(output, form.output(packed=packed), self._layer),
            axes=form,
            num_kv_heads=int(product(form.kv_heads)),
            head_dim=int(product(form.head_dim)),
            # At the example's sizes, of [B, T, H*D] or [B, H, T, D].
            kv_len=example_shape(key)[1 if packed else 2],
        )

    def _reader(self, gates: Node) -> Reader:
        scores, end = self._scores, self._layer.end
        # The inserted op reads gates, masks and factors, too: what they are made of stays needed.
        others = {gates, *(mask.operand.node for mask in scores.masks)}
        others |= {factor.operand.node for factor in scores.factors}

        @cache
        def is_private(node: Node) -> bool:
            readers = rewritten.readers_up_to(node, end, self._rewrite.swaps)
            return readers is not None and (node in others or readers.isdisjoint(others))

        return Reader(self._twins, self._known.__contains__, is_private)

    def _form(self) -> rewritten.AttentionForm:
        # query [B, Hq, S, D], key [B, Hkv, T, D] in any order: D is what the key has beyond batch,
        # heads and keys, and the query has to have it, too, since the product sums over it.
        key_layout, keys = flat(self._scores.key.layout), leaves(self._scores.key_axes)
        batch, heads, tokens = (
            leaves(axes) for axes in (self._layer.batch, self._layer.heads, self._layer.tokens)
        )
        query_axes, key_axes = set(flat(self._scores.query.layout)), set(key_layout)
        outside = {*batch, *heads, *tokens, *keys}
        head_dim = tuple(axis for axis in key_layout if axis not in outside)
        if not set(head_dim) <= query_axes or not keys:
            raise NotCoveredError("query and key share no head dimension")
        if key_axes & set(tokens):
            raise NotCoveredError("each query has keys of its own")
        for axes, what in ((heads, "heads"), (head_dim, "head dimension")):
            if not product(axes).is_Integer:
                raise NotCoveredError(f"the {what} have a dynamic size")
        # Heads of the query are (kv head, query head of the group), as axes, kv major: keys and
        # values that do not vary along the minor ones are shared by a group. Anywhere on the trail
        # counts: a model may have repeated them for every head itself.
        kv_heads = heads
        for count in reversed(range(len(heads))):
            layouts = ([flat(piece.layout) for piece in trail] for trail in self._trails[1:])
            if all(any(set(heads[count:]).isdisjoint(axes) for axes in own) for own in layouts):
                kv_heads = heads[:count]
        return rewritten.AttentionForm(
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            tokens=tokens,
            keys=keys,
            head_dim=head_dim,
            value_dim=leaves(self._layer.core.value_axes),
        )

    def _visible_keys(self) -> tuple[Node | None, Node | None, bool]:
        """Return attn_mask and key_ranges, where they are needed, and is_causal."""
        structure, builder = self._structure, self._builder
        if structure is not None:
            form = self.form
            key = (replace(structure, rest=()), product(form.tokens), product(form.keys))
            if key not in self._inserted:
                ranges = insert_ranges(self._operands, structure, form.tokens, form.keys)
                self._inserted[key] = insert_padding(builder, structure), ranges
            padding, ranges = self._inserted[key]
            mask = self._mask(structure.rest, None)
            if mask is not None and padding is not None:
                padding = self._where(padding, mask, -math.inf)
            return padding or mask, ranges, structure.end == CAUSAL
        is_causal = self._scores.is_causal
        mask = self._top_left_causal() if is_causal and not self._is_square else None
        return self._mask(self._scores.masks, mask), None, is_causal and self._is_square

    def _mask(self, terms: Sequence[MaskTerm], mask: Node | None) -> Node | None:
        """Return all masks as one, [B, Hq, S, T]: bool where it hides altogether, or an addend."""
        # As the model applies them: a fill overwrites what was added before, and not afterwards.
        for term in reversed(terms):
            form = (self.form.batch, self.form.heads, self.form.tokens, self.form.keys)
            node = self._operands.arrange(term.operand, form, expand=False)
            if term.kind != "add":
                mask = self._filled(mask, node, term)
                continue
            if term.value != 1:
                node = self._builder.call(aten.mul.Scalar, node, term.value)
            mask = (
                node
                if mask is None
                else self._builder.call(aten.add.Tensor, self._addend(mask), node)
            )
        return mask

    def _addend(self, mask: Node) -> Node:
        return self._where(mask, None, -math.inf) if tensor(mask).dtype == torch.bool else mask

    def _filled(self, mask: Node | None, node: Node, term: MaskTerm) -> Node:
        keep = self._operands.cast(node, torch.bool)
        if term.kind == "drop":
            keep = self._builder.call(aten.logical_not.default, keep)
        if math.isinf(term.value) or term.value == 1:  # a bool mask has no fill, and hides as well
            if mask is None:
                return keep
            if tensor(mask).dtype == torch.bool:
                return self._builder.call(aten.logical_and.default, keep, mask)
            return self._where(keep, mask, -math.inf)
        # A finite fill overwrites scores, so that a row without any key is uniform. Added in
        # float32, a number that absorbs every score does the same; a lower fill stays lower.
        return self._where(keep, mask, min(term.value, max(_ABSORBING, 1e16 * term.value)))

    def _where(self, keep: Node, mask: Node | None, fill: float) -> Node:
        """Return a mask, or 0, where keys are kept, and a fill in float32 elsewhere."""
        kept = keep if mask is None else self._addend(mask)
        kept = self._operands.cast(kept, torch.float32)
        if mask is None:
            kept = self._builder.call(aten.mul.Scalar, kept, 0.0)
        return self._builder.call(aten.where.ScalarOther, keep, kept, fill)

    def _top_left_causal(self) -> Node:
        # [S, T], True where key t <= query s. The op counts from the last query and key instead.
        sizes = (product(self.form.tokens), product(self.form.keys))
        if not all(size.is_Integer for size in sizes):
            raise NotCoveredError("is_causal with queries and keys of different dynamic lengths")
        ones = self._builder.call(aten.ones.default, [int(size) for size in sizes])
        causal = self._builder.call(aten.tril.default, ones)
        return self._builder.call(aten.gt.Scalar, causal, 0)

"""Collect the inserted nodes of a layer that replace its original operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, flat, leaves, product, resolve
from moh_deploy.frontend.fx.builder import (
    GraphBuilder,
    LayoutBuilder,
    NotCoveredError,
    Operand,
    UnknownSizeError,
)
from moh_deploy.frontend.fx.graph import is_tensor, op, shape, tensor
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.slices import Piece, trail_of
from moh_deploy.frontend.fx.views import casts, history
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.frontend.recognize.walk import walk
from moh_deploy.ops.op_names import AttentionOp

# Queries, keys, values and gates in the layouts that the ops want.


@dataclass(frozen=True)
class Swap:
    """A node and the inserted one that takes over from it."""

    old: Node
    new: Node
    what: str  # names the new one in messages
    path: str = ""  # module path of the old one; empty within a layer, which has one itself
    # Names of the operators that the old one ends, in execution order.
    replaced: tuple[str, ...] = ()
    inserted: tuple[str, ...] = ()  # names of the operators that compute the same


def readers_up_to(node: Node, end: Node, swaps: Sequence[Swap] = ()) -> set[Node] | None:
    """All that is computed of a node, if `end` alone brings it to the model's outputs; else None.

    Args:
        swaps: What takes over from other nodes, and thus has their readers.
    """
    # A part of a packed projection has no readers yet: those of the original part will be its own.
    old = {swap.new: swap.old for swap in swaps}

    def readers(current: Node) -> list[Node]:
        return [user for user in (*current.users, old.get(current, current)) if user is not end]

    found = set(walk(node, readers))
    return None if any(reader.op == "output" for reader in found) else found


aten = torch.ops.aten


class OperandBuilder(LayoutBuilder):
    """Brings the tensors of a layer into the layouts of an op."""

    def __init__(self, builder: GraphBuilder, dtype: torch.dtype) -> None:
        super().__init__(builder)
        self._dtype = dtype

    def operand(self, trail: Sequence[Piece], wanted: Layout) -> Node:
        """The tensor in the wanted layout, as `taken`, and the op's dtype."""
        return self.cast(self.taken(trail, wanted))

    def taken(self, trail: Sequence[Piece], wanted: Layout) -> Node:
        """The tensor in the wanted layout: one that the model already has, or a rearranged one.

        Args:
            trail: The tensor and what it is a view or a part of, nearest first.
        """
        # Best is a tensor that has the elements in this order: it costs a reshape at most.
        # Otherwise the one with the fewest axes: keys before they were repeated for the heads of a
        # group.
        piece, axes = entry(trail, wanted), set(flat(wanted))
        if piece is None:
            usable = [piece for piece in trail if set(flat(piece.layout)) <= axes]
            whole = [piece for piece in usable if not piece.cuts]
            if not usable:
                raise NotCoveredError(
                    "query, key or value vary along an axis that attention does not have"
                )
            piece = min(whole or usable, key=lambda piece: len(flat(piece.layout)))
        node = piece.node
        for dim, start, stop in piece.cuts:
            node = self.builder.call(aten.slice.Tensor, node, dim, start, stop)
        return self.arrange(Operand(node, piece.layout), wanted)

    def cast(self, node: Node, dtype: torch.dtype | None = None) -> Node:
        """The node in this dtype, or in that of the op's operands."""
        return self.builder.cast(node, dtype or self._dtype)

    def replacement(self, output: Node, layout: Layout, layer: MoHLayer) -> Node:
        """An op's output in the layout, memory order and dtype of the layer's gated attention."""
        replaced = self.arrange(Operand(output, layout), layer.layout)
        # Readers may have been traced as views, which need the memory order of what they read.
        in_order = self.builder.call(aten.contiguous.default, replaced)
        return self.cast(in_order, tensor(layer.node).dtype)


def gates_of(layer: MoHLayer, layouts: LayoutBuilder) -> Node:
    """Insert the product of a layer's gates as [B, S, H].

    Raises:
        UnknownSizeError: If the gates cannot be brought into that layout.
    """
    wanted: Layout = (layer.batch, layer.tokens, layer.heads)
    axes = set(flat(wanted))
    # A gate may be a factor of several, [B, S, H, 1] times [1, 1, H, 1] say, or a bool mask.
    factors: list[Node] = []
    for factor in layer.gates:
        trail = [p for p in trail_of(factor) if not p.cuts and set(flat(p.layout)) <= axes]
        best = entry(trail, wanted) or (trail[0] if trail else factor)
        node = layouts.arrange(Operand(best.node, best.layout), wanted)
        is_mask = tensor(node).dtype == torch.bool
        factors.append(layouts.builder.cast(node, tensor(layer.node).dtype) if is_mask else node)
    return reduce(partial(layouts.builder.call, aten.mul.Tensor), factors)


def unscaled(operand: Operand, known: KnownValues) -> tuple[Operand, float]:
    """The tensor that an operand is a multiple of, and the number that it is multiplied with."""
    # (x * 0.125).view(...).transpose(...): numbers are found behind views, but not behind a cast,
    # which rounds what it is given.
    scale = 1.0
    while True:
        trail = history(operand.node, operand.layout)
        node, layout = trail[-1]
        read = None if any(casts(node) for node, _ in trail[:-1]) else _multiple(node, known)
        if read is None:
            return operand, scale
        source, number = read
        operand, scale = Operand(source, layout), scale * number


def _multiple(node: Node, known: KnownValues) -> tuple[Node, float] | None:
    """Take a node apart into what it is a multiple of, and the number."""
    name = op(node)
    if name not in ("mul", "multiply", "div", "divide", "true_divide") or len(node.args) != 2:
        return None
    for position in (0, 1) if name.startswith("mul") else (0,):
        source, other = node.args[position], node.args[1 - position]
        number = float(other) if isinstance(other, (int, float)) else None
        if isinstance(other, Node) and is_tensor(other) and tensor(other).numel() == 1:
            value = known(other)
            number = None if value is None else float(value)
        if isinstance(source, Node) and number:
            same = shape(source) == shape(node) and tensor(source).dtype == tensor(node).dtype
            return (source, number if name.startswith("mul") else 1 / number) if same else None
    return None


def arranged_operand(layouts: LayoutBuilder, operand: Operand, wanted: Layout) -> Node:
    """The operand in the wanted layout, from the tensor among its views that is nearest to it."""
    found = entry(trail_of(operand), wanted)
    source = operand if found is None or found.cuts else Operand(found.node, found.layout)
    return layouts.arrange(source, wanted)


def arranged_like_views(layouts: LayoutBuilder, operand: Operand, wanted: Layout) -> Node:
    """The operand in the wanted layout and in the memory order of that layout."""
    result = layouts.arrange(operand, wanted)
    if result is operand.node:
        return result
    # Readers may have been traced as views, which need the memory order of what they read.
    return layouts.builder.call(aten.clone.default, result, memory_format=torch.contiguous_format)


def entry(trail: Sequence[Piece], wanted: Layout) -> Piece | None:
    """The nearest tensor of a trail that has this very layout, or else the farthest one that has
    its elements in that order."""
    wanted, order = resolve(wanted), flat(wanted)
    exact = [piece for piece in trail if resolve(piece.layout) == wanted]
    in_order = [piece for piece in trail if flat(piece.layout) == order and not piece.cuts]
    return next(iter([*exact, *reversed(in_order)]), None)


# View what each layer's attention computes in one form, to record a fingerprint of it.


def view_attention(program: ExportedProgram, rewrites: Sequence[Rewrite]) -> list[Rewrite]:
    """Insert, for each layer, a view [B, S, H * value size] of what the original operators compute:
    the heads, each multiplied by its gate.

    After all else is inserted: who reads a value decides what may take its place.
    """
    graph = program.graph_module.graph
    viewed = [
        replace(
            rewrite,
            attention_view=_view(rewrite.layer, GraphBuilder(graph, rewrite.layer.node.next)),
        )
        for rewrite in rewrites
    ]
    program.graph_module.recompile()
    return viewed


def drop_views(rewrites: Sequence[Rewrite]) -> None:
    """Take back the views of attentions that an op takes over from: it may stand behind them."""
    for rewrite in rewrites:
        node = None if rewrite.replacement is None else rewrite.attention_view
        while node is not None and node is not rewrite.layer.node and not node.users:
            source = node.all_input_nodes[0]
            node.graph.erase_node(node)
            node = source


def _view(layer: MoHLayer, builder: GraphBuilder) -> Node | None:
    """None where batch and tokens are no axes of it, or a size cannot be expressed."""
    # [B, H, S, D] or [B, S, H, D] -> [B, S, H*D]: a fingerprint of it is taken for each token.
    batch, tokens, heads = leaves(layer.batch), leaves(layer.tokens), leaves(layer.heads)
    layout = flat(layer.layout)
    if not {*batch, *tokens} <= set(layout):
        return None
    # The sum over the heads is viewed where the model has nothing else: [B, S, value size].
    inner = tuple(axis for axis in layout if axis not in {*batch, *tokens, *heads})
    summed = tuple(axis for axis in heads if axis in layout)
    wanted: Layout = (batch, tokens, (*summed, *inner))
    try:
        return LayoutBuilder(builder).arrange(Operand(layer.node, layer.layout), wanted)
    except UnknownSizeError:
        return None


# The axes of a layer by the names that the attention ops give them.


@dataclass(frozen=True)
class HeadAxes:
    """The axes of a layer that its attention and its projections have to meet: B, S, Hq, D and Dv.

    Attributes:
        heads: Major first.
        head_dim, value_dim: Of one head of the queries and of the output.
    """

    batch: Dim
    tokens: Dim
    heads: Dim
    head_dim: Dim
    value_dim: Dim

    @property
    def num_heads(self) -> int:
        return int(product(self.heads))

    def query(self, *, packed: bool) -> Layout:
        return self._layout(self.heads, self.tokens, self.head_dim, packed)

    def output(self, *, packed: bool) -> Layout:
        return self._layout(self.heads, self.tokens, self.value_dim, packed)

    def _layout(self, heads: Dim, rows: Dim, columns: Dim, packed: bool) -> Layout:
        if packed:
            return (self.batch, rows, (*heads, *columns))
        return (self.batch, heads, rows, columns)


@dataclass(frozen=True)
class AttentionForm(HeadAxes):
    """The axes of a layer as MoHAttention's: those of its heads, and Hkv and T."""

    kv_heads: Dim
    keys: Dim

    def inputs(self, *, packed: bool) -> tuple[Layout, Layout, Layout]:
        """The layouts of query, key and value."""
        key = self._layout(self.kv_heads, self.keys, self.head_dim, packed)
        value = self._layout(self.kv_heads, self.keys, self.value_dim, packed)
        return self.query(packed=packed), key, value


@dataclass(frozen=True)
class Rewrite:
    """The nodes that were inserted for one layer, and what they take over from.

    Attributes:
        gates: [B, S, H], from the original operators.
        scores: [B, S, candidates], what the router ranks; None where it ranks nothing.
        computed_gates: What the gates are views of: the router's own result, [..., H].
        routed: Replaces `computed_gates`; None where the router stays.
        fixed_gates: [B, S, H], read instead of gates that no input changes; None for other gates,
            and where the attention stays.
        op: `MoHAttention` or `MoHAggregatedAttention`; None where the attention stays.
        replacement: Replaces `layer.node`; None where the attention stays.
        reason: Why the attention or the router stays; None if both are replaced.
        hidden_by: The input that tells a causal layer which keys are padding; None without one.
        mask: What structure the layer's masks have, or why none was found; None without masks.
        num_kv_heads, head_dim, kv_len: None where the attention stays.
        swaps: Other nodes that inserted ones take over from: parts of packed projections.
        query_projection: The inserted MoHQueryProjection, or None.
        output_projection: Replaces the linear map that reads the gated heads; or None.
        attention_view: [B, S, H * value size], from the original operators: the gated heads; None
            where they have no such view, or none was inserted.
    """

    layer: MoHLayer
    router: Router
    gates: Node
    computed_gates: Node
    scores: Node | None = None
    routed: Node | None = None
    fixed_gates: Node | None = None
    op: AttentionOp | None = None
    attention: Node | None = None
    axes: HeadAxes | None = None
    replacement: Node | None = None
    reason: str | None = None
    hidden_by: Node | None = None
    mask: str | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    kv_len: int | None = None
    swaps: tuple[Swap, ...] = ()
    query_projection: Node | None = None
    output_projection: Swap | None = None
    attention_view: Node | None = None

    @property
    def all_swaps(self) -> tuple[Swap, ...]:
        """The swaps, that of the output projection included."""
        return (
            self.swaps if self.output_projection is None else (*self.swaps, self.output_projection)
        )

    @property
    def kept_view(self) -> Node | None:
        """The view that readers of the model need: of an attention that no op takes over from."""
        return self.attention_view if self.replacement is None else None

    def kept(self, reason: str) -> Rewrite:
        """Return the layer left as it is."""
        return replace(
            self,
            routed=None,
            fixed_gates=None,
            op=None,
            attention=None,
            replacement=None,
            reason=reason,
            swaps=(),
            query_projection=None,
            output_projection=None,
        )

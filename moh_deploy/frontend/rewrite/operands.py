"""Queries, keys, values and gates in the layouts that the ops want."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout, flat, resolve
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, NotCoveredError, Operand
from moh_deploy.frontend.fx.graph import is_tensor, op, shape, tensor
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.slices import Piece, trail_of
from moh_deploy.frontend.fx.views import casts, history
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.walk import walk


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

"""Gates of parts of an attention's tokens, put together to gates of all.

Two streams may attend to both, each with weights of its own, and then go apart again:
`y[:, :n] * a, y[:, n:] * b`. That is `y * cat([a, b])`, cut apart behind it; in that form the
attention is gated as a whole. Parts may be transposed and split into heads before they are gated.

Source: arXiv 2403.03206, figure 2b, is the attention that is usually written so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx import axes, graph
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, Operand, UnknownSizeError
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.views import casts, forward, is_view, lacks
from moh_deploy.frontend.normalize.plain_attention import is_attention

aten = torch.ops.aten


@dataclass(frozen=True)
class _Part:
    """A part of some tokens and what a view of it is multiplied with."""

    node: Node  # the slice, or one of the pieces of a split
    start: axes.Size  # the first entry
    product: Node  # its only reader, behind views
    # Of the product, in the axes of the whole tensor, with one of its own for the tokens.
    layout: axes.Layout
    dim: int  # the dimension of the product that has these
    gates: Operand  # they do not vary along the last axis

    def form(self, tokens: axes.Dim) -> tuple[axes.Layout, frozenset[axes.Axis]]:
        """The layout of the product with other tokens, and the axes of the gates besides them."""
        layout = axes.resolve((*self.layout[: self.dim], tokens, *self.layout[self.dim + 1 :]))
        return layout, frozenset(axes.flat(self.gates.layout)) - set(self.layout[self.dim])


def join_parts(source: Node) -> None:
    """Gate an attention's output as a whole where each of its parts is gated, if it is that."""
    if not is_attention(source):
        return
    whole = axes.fresh_layout(graph.shape(source))
    found = _parts(source, whole)
    if found is None:
        return
    cut, parts = found
    order = {node: position for position, node in enumerate(source.graph.nodes)}
    first = min((part.product for part in parts), key=order.__getitem__)
    needed = set(graph.ancestors(*(part.gates.node for part in parts)))
    # All products and gates have to be laid out alike, except their tokens.
    forms = {part.form(whole[cut]) for part in parts}
    if needed & {part.product for part in parts} or len(forms) != 1:
        return
    for node in sorted(needed, key=order.__getitem__):
        if order[node] > order[first]:
            first.prepend(node)  # gates of a later stream do not wait for the first one's output
    builder = LayoutBuilder(GraphBuilder(source.graph, first))
    try:
        gates = [builder.arrange(part.gates, part.layout, expand=False) for part in parts]
        spread = builder.arrange(Operand(source, whole), forms.pop()[0])
    except UnknownSizeError:
        return
    all_gates = builder.builder.call(aten.cat.default, gates, parts[0].dim)
    gated = builder.builder.call(aten.mul.Tensor, spread, all_gates)
    for part in parts:
        # The readers of a part's product read that part of the whole one.
        behind = GraphBuilder(source.graph, part.product)
        cutter = _cutter(part.node, source)
        given = graph.arguments(cutter) | {"self": gated, "dim": part.dim}
        cut_off = behind.apply(cutter.target, given)
        if cutter is not part.node:
            getitem = cast(Callable[..., object], part.node.target)
            cut_off = behind.call(getitem, cut_off, part.node.args[1])
        part.product.replace_all_uses_with(cut_off)


def _parts(source: Node, whole: axes.Layout) -> tuple[int, list[_Part]] | None:
    """The gated parts that make up all of a tensor, in order, and the dimension they are cut in."""
    cuts = [cut for user in source.users for cut in _cuts(user, source)]
    dims = {dim for _, dim, _ in cuts}
    readers = {user for user in source.users if not graph.reads_shape_only(user)}
    if len(dims) != 1 or readers != {_cutter(node, source) for node, _, _ in cuts}:
        return None
    (dim,) = dims
    parts = [_part(node, start, whole, dim) for node, _, start in cuts]
    known = {part.start: part for part in parts if part is not None}
    in_order: list[_Part] = []
    at: axes.Size = axes.size_of(0)
    while at in known:
        in_order.append(known[at])
        at = at + graph.shape(known.pop(at).node)[dim]
    complete = not known and len(in_order) == len(cuts) > 1 and at == graph.shape(source)[dim]
    return (dim, in_order) if complete else None


def _cuts(user: Node, source: Node) -> list[tuple[Node, int, axes.Size]]:
    """The parts that one reader cuts off: each with its dimension and its first entry."""
    name = graph.op(user)
    if name in ("slice", "narrow") and graph.argument(user, "step", 1) == 1:
        dim = cast(int, graph.argument(user, "dim", 0)) % graph.rank(source)
        given = graph.argument(user, "start", 0) or 0
        start = axes.size_of(given.meta["val"] if isinstance(given, Node) else given)
        return [(user, dim, start + graph.shape(source)[dim] if start.is_negative else start)]
    if name in ("split", "split_with_sizes"):
        dim = cast(int, graph.argument(user, "dim", 0)) % graph.rank(source)
        pieces = {cast(int, piece.args[1]): piece for piece in user.users}
        starts = [axes.size_of(0)]
        for piece in user.meta["val"]:
            starts.append(starts[-1] + axes.size_of(piece.shape[dim]))
        return [(piece, dim, starts[index]) for index, piece in pieces.items()]
    return []


def _cutter(part: Node, source: Node) -> Node:
    return part if source in part.all_input_nodes else cast(Node, part.args[0])


def _part(node: Node, start: axes.Size, whole: axes.Layout, cut: int) -> _Part | None:
    """The part with its gates; None where it is read ungated, or by several."""
    tokens: axes.Dim = (axes.Axis(graph.shape(node)[cut]),)  # an axis even for a single token
    current, layout = node, (*whole[:cut], tokens, *whole[cut + 1 :])
    while True:
        readers = [user for user in current.users if not graph.reads_shape_only(user)]
        if len(readers) != 1 or not graph.is_tensor(readers[0]):
            return None
        (reader,) = readers
        if not is_view(reader) or casts(reader):
            break
        moved = forward(reader, layout)
        if moved is None:
            return None
        current, layout = reader, moved
    product = contraction(reader)
    if product is None or product.summed or current not in product.operands:
        return None
    side = product.operands.index(current)
    factor, (gates, out) = product.operands[1 - side], product.layouts(layout, side)
    # A whole dimension has the tokens, and the channels do not differ in their gates.
    dims = [position for position, dim in enumerate(axes.resolve(layout)) if dim == tokens]
    if factor is current or axes.resolve(out) != axes.resolve(layout) or not dims:
        return None
    if lacks(gates, tokens) or not layout[-1] or not lacks(gates, axes.leaves(layout[-1])[-1:]):
        return None
    return _Part(node, start, reader, layout, dims[0], Operand(factor, gates))


# Attention with some tokens read, as attention of these: the last block of two streams
# drops what it computes for the other one.


_ORIGINS = ("nn_module_stack", "stack_trace")


def attend_for_read_tokens(node: Node) -> None:
    """Attend for the tokens that are read only, if a node is an attention.

    `attention(q, k, v)[:, :n]` is `attention(q[:, :n], k, v)`, through views of it.
    """
    if graph.op(node) != "scaled_dot_product_attention" or graph.rank(node) < 3:
        return
    current, layout = node, axes.fresh_layout(graph.shape(node))
    whole, replaced = layout, [node]
    while True:
        if len(current.users) != 1:
            return
        (reader,) = current.users
        replaced.append(reader)
        moved = forward(reader, layout) if is_view(reader) and not casts(reader) else None
        if moved is None:
            break
        current, layout = reader, moved
    cuts = _cuts(reader, current)
    if len(cuts) != 1:
        return
    part, dim, start = cuts[0]
    rows = axes.resolve(whole)[-2]
    if not rows or axes.resolve(layout)[dim] != rows:
        return
    if graph.argument(node, "is_causal", False) and start != 0:
        return  # the first of these queries is no longer the one that sees a single key
    builder, before = GraphBuilder(node.graph, part), part.prev

    def cut(operand: Node) -> Node:
        cutter = _cutter(part, current)
        given = graph.arguments(cutter) | {"self": operand, "dim": graph.rank(operand) - 2}
        found = builder.apply(cutter.target, given)
        if cutter is part:
            return found
        return builder.call(cast(Callable[..., object], part.target), found, part.args[1])

    given = graph.arguments(node)
    mask = given.get("attn_mask")
    if isinstance(mask, Node) and graph.rank(mask) > 1 and graph.shape(mask)[-2] != 1:
        given["attn_mask"] = cut(mask)
    attended = builder.apply(node.target, given | {"query": cut(cast(Node, given["query"]))})
    attended.meta |= {key: node.meta[key] for key in _ORIGINS if key in node.meta}
    tokens: axes.Dim = (axes.Axis(graph.shape(part)[dim]),)
    try:
        viewed = LayoutBuilder(builder).arrange(
            Operand(attended, (*whole[:-2], tokens, whole[-1])),
            axes.resolve((*layout[:dim], tokens, *layout[dim + 1 :])),
        )
    except UnknownSizeError:
        while part.prev is not before:
            node.graph.erase_node(part.prev)
        return
    part.replace_all_uses_with(viewed)
    for old in reversed(list(dict.fromkeys([*replaced, part]))):
        node.graph.erase_node(old)  # torch takes attention for random, and keeps it unread


# Gates of heads in front of gates of channels: `attention * channels * heads` in the other order.
#
# An op that skips closed heads computes `attention * heads`; what scales each channel comes behind.


_PRODUCTS = ("mul", "multiply")


def put_gates_before_channels(node: Node) -> None:
    """Exchange the factors of `(attention * channels) * heads`, if a node is that."""
    outer = _product(node, lambda inner: graph.op(inner) in _PRODUCTS and len(inner.users) == 1)
    inner = None if outer is None else _product(outer[0], is_attention)
    if outer is None or inner is None or _is_per_channel(node, outer[1]):
        return
    if _is_per_channel(outer[0], inner[1]):
        builder = GraphBuilder(node.graph, node)
        gated = builder.call(aten.mul.Tensor, inner[0], outer[1])
        node.replace_all_uses_with(builder.call(aten.mul.Tensor, gated, inner[1]))


def _product(node: Node, wanted: Callable[[Node], bool]) -> tuple[Node, Node] | None:
    """Read a product as a wanted tensor of its own size, and another factor."""
    product = contraction(node) if graph.op(node) in _PRODUCTS else None
    for side in (0, 1) if product is not None else ():
        assert product is not None
        whole, factor = product.operands[side], product.operands[1 - side]
        alike = (
            graph.shape(whole) == graph.shape(node)
            and graph.tensor(whole).dtype == graph.tensor(node).dtype
        )
        if alike and whole is not factor and wanted(whole):
            return whole, factor
    return None


def _is_per_channel(product: Node, factor: Node) -> bool:
    """True for a factor that varies along the last dimension."""
    return graph.rank(factor) > 0 and graph.shape(factor)[-1] == graph.shape(product)[-1] != 1

"""Attention with some tokens read, as attention of these.

The last block of two streams drops what it computes for one of them: `attention(q, k, v)[:, :n]`
is `attention(q[:, :n], k, v)`, fused or written out, through views of it.
"""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from moh_deploy.frontend.fx import axes, graph
from moh_deploy.frontend.fx.builder import GraphBuilder, LayoutBuilder, Operand, UnknownSizeError
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.views import casts, forward, is_view, through_views
from moh_deploy.frontend.normalize.plain_attention import WEIGHING_PRODUCTS, is_attention

_ORIGINS = ("nn_module_stack", "stack_trace")


def attend_for_read_tokens(node: Node) -> None:
    """Attend for the tokens that are read only, if a node cuts them from an attention."""
    source = next(iter(node.all_input_nodes), None)
    if source is None or graph.reads_shape_only(node) or not graph.is_tensor(source):
        return
    cuts = cuts_of(node, source)
    if len(cuts) != 1 or is_view(node):
        return
    part, dim, start = cuts[0]
    if not is_attention(source):
        return
    builder, before = GraphBuilder(node.graph, part), part.prev
    reading = _Reading(builder, part, node, starts_at_first=start == 0)
    try:
        attended = reading.attention(source, dim)
    except UnknownSizeError:
        attended = None
    if attended is None:
        while part.prev is not before:
            node.graph.erase_node(part.prev)
        return
    part.replace_all_uses_with(attended)
    # torch takes attention for random, and would keep it unread.
    for old in dict.fromkeys([part, node, *reading.replaced]):
        node.graph.erase_node(old)


class _Reading:
    """Inserts what computes the read entries of a dimension.

    Args:
        part: The read part, a result of `cutter`.
        starts_at_first: The first entry is among them.
    """

    def __init__(
        self, builder: GraphBuilder, part: Node, cutter: Node, *, starts_at_first: bool
    ) -> None:
        self._builder, self._part, self._cutter = builder, part, cutter
        self._starts_at_first = starts_at_first
        self.replaced: list[Node] = []  # what is read no longer, readers before what they read

    def attention(self, node: Node, dim: int) -> Node | None:
        """Insert attention of some queries; None if the dimension holds something else."""
        self.replaced.append(node)
        if is_view(node) and not casts(node):
            return self._viewed(node, dim, self.attention)
        if graph.op(node) != "scaled_dot_product_attention":
            return self._product(node, dim, of_weights=True)
        causal_from_later = graph.argument(node, "is_causal", False) and not self._starts_at_first
        if dim != graph.rank(node) - 2 or len(node.users) != 1 or causal_from_later:
            return None  # the first of later queries is not the one that sees a single key
        given = graph.arguments(node)
        mask = given.get("attn_mask")
        if isinstance(mask, Node):
            given["attn_mask"] = self._operand(mask, node, dim)
        query = self._cut(cast(Node, given["query"]), dim)
        return self._with_origin(self._builder.apply(node.target, given | {"query": query}), node)

    def _weights(self, node: Node, dim: int) -> Node:
        """Insert attention weights, or scores, of some tokens: from their product on, if nothing
        else reads them, and else as a part of them."""
        found: Node | None = None
        target = node.target
        if len(node.users) != 1:
            return self._cut(node, dim)
        if is_view(node) and not casts(node):
            found = self._viewed(node, dim, self._weights)
        elif graph.op(node) in graph.SOFTMAXES:
            if cast(int, graph.argument(node, "dim")) % graph.rank(node) != dim:
                source = cast(Node, node.args[0])
                found = self._again(node, {source: self._weights(source, dim)})
        elif graph.op(node) in WEIGHING_PRODUCTS:
            found = self._product(node, dim, of_weights=False)
        elif is_view(node) or (
            isinstance(target, torch._ops.OpOverload)
            and (torch.Tag.pointwise in target.tags or graph.op(node) == "where")
            and torch.Tag.nondeterministic_seeded not in target.tags
        ):
            sources = [source for source in node.all_input_nodes if graph.is_tensor(source)]
            operands = {source: self._operand(source, node, dim) for source in sources}
            found = self._again(node, operands)
        return self._cut(node, dim) if found is None else found

    def _product(self, node: Node, dim: int, *, of_weights: bool) -> Node | None:
        """Insert a product of some rows."""
        product = contraction(node)
        if product is None or len(node.users) != 1 or product.operands[0] is product.operands[1]:
            return None
        label = product.out[dim]
        sides = [side for side in (0, 1) if label in product.labels[side]]
        if len(sides) != 1:
            return None
        operand, position = product.operands[sides[0]], product.labels[sides[0]].index(label)
        if of_weights and graph.op(through_views(operand)) not in graph.SOFTMAXES:
            return None
        rows = self._weights if of_weights else self._cut
        return self._again(node, {operand: rows(operand, position)})

    def _viewed(
        self, node: Node, dim: int, rows: Callable[[Node, int], Node | None]
    ) -> Node | None:
        """Insert a view of some entries of its source; None where it regroups the dimension."""
        source = cast(Node, node.args[0])
        layout = axes.fresh_layout(graph.shape(source))
        moved = forward(node, layout)
        if moved is None or len(node.users) != 1:
            return None
        resolved = axes.resolve(moved)
        own = [at for at, axis in enumerate(axes.resolve(layout)) if axis and axis == resolved[dim]]
        if not own:
            return None
        found = rows(source, own[0])
        if found is None:
            return None
        tokens: axes.Dim = (axes.Axis(graph.shape(found)[own[0]]),)
        operand = Operand(found, (*layout[: own[0]], tokens, *layout[own[0] + 1 :]))
        wanted = axes.resolve((*resolved[:dim], tokens, *resolved[dim + 1 :]))
        return LayoutBuilder(self._builder).arrange(operand, wanted)

    def _operand(self, node: Node, result: Node, dim: int) -> Node:
        """Insert some entries of an operand that is broadcast to a result."""
        own = dim - graph.rank(result) + graph.rank(node)
        if own < 0 or graph.shape(node)[own] == 1:
            return node
        leads = graph.rank(node) == graph.rank(result)
        return self._weights(node, own) if leads else self._cut(node, own)

    def _cut(self, node: Node, dim: int) -> Node:
        given = graph.arguments(self._cutter) | {"self": node, "dim": dim}
        found = self._builder.apply(self._cutter.target, given)
        if self._part is self._cutter:
            return found
        getitem = cast(Callable[..., object], self._part.target)
        return self._builder.call(getitem, found, self._part.args[1])

    def _again(self, node: Node, operands: Mapping[Node, Node]) -> Node:
        """Insert a call with other operands."""
        given = (node.args, dict(node.kwargs))
        args, kwargs = map_arg(given, lambda source: operands.get(source, source))
        target = cast(Callable[..., object], node.target)
        return self._with_origin(self._builder.call(target, *args, **kwargs), node)

    def _with_origin(self, new: Node, old: Node) -> Node:
        new.meta |= {key: old.meta[key] for key in _ORIGINS if key in old.meta}
        return new


def cuts_of(user: Node, source: Node) -> list[tuple[Node, int, axes.Size]]:
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


def cutter_of(part: Node, source: Node) -> Node:
    """Return the call that cuts a part off: the part itself, or the split that it is a piece of."""
    return part if source in part.all_input_nodes else cast(Node, part.args[0])

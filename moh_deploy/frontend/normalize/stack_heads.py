"""Heads that are computed one by one, in a loop that the trace has unrolled, as one tensor of all.

`cat([softmax(q_h @ k_h.mT) @ v_h * g_h for h in heads], -1)`: the heads do the same with tensors of
their own, which are slices of common ones, or weights. Stacked, `[H, ...]`, they are what every
other attention computes at once; where they are joined, the dimension of heads goes into its place.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.axes import size_of
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import (
    SOFTMAXES,
    ancestors,
    argument,
    arguments,
    is_tensor,
    op,
    rank,
    reads_shape_only,
    shape,
    tensor,
)
from moh_deploy.frontend.fx.known_values import Constants, StoredNodes, is_random
from moh_deploy.frontend.fx.slices import Slice, read_slice
from moh_deploy.frontend.fx.views import casts, is_view
from moh_deploy.frontend.normalize import stacked_ops
from moh_deploy.frontend.normalize.plain_attention import is_attention

aten = torch.ops.aten

_ATTENTION = frozenset((*SOFTMAXES, "scaled_dot_product_attention"))
_ZEROS = ("zeros", "zeros_like", "new_zeros")
# Of a head, nodes that are looked at: a head is a dozen of them, and a model is thousands.
_MOST_NODES = 400
_NEAR = 60

Heads = tuple[Node, ...]


def stack_heads(program: ExportedProgram) -> None:
    """Let operators on all heads take over from those on one head each."""
    graph = program.graph_module.graph
    if sum(op(node) in _ATTENTION for node in graph.nodes) < 2:
        return
    stored = StoredNodes(graph, Constants(program))
    known: dict[Heads, stacked_ops.Stacked] = {}
    for node in list(graph.nodes):
        if op(node) in ("cat", "stack"):
            heads = cast(Heads, tuple(cast(Sequence[Node], node.args[0])))
            found = _stack(node, heads, {node}, stored, known)
            if found is not None:
                dim = cast(int, argument(node, "dim", 0)) % rank(node)
                builder, is_cat = GraphBuilder(graph, node), op(node) == "cat"
                joined = (
                    _merged(builder, found, dim)
                    if is_cat
                    else stacked_ops.heads_at(builder, found.node, dim)
                )
                node.replace_all_uses_with(joined)
        elif _adds(node) and not _is_added_on(node):  # the last of a row of additions
            _stack_summed(node, stored, known)
    # Dropout may be a part of a fused attention: it is switched off, and has no effect.
    graph.eliminate_dead_code(lambda node: node.is_impure() and not is_random(node))


class _DifferError(Exception):
    """The heads do not do the same."""


class _Stacker:
    """Inserts what heads compute as operators on all of them.

    Args:
        builder: Inserts in front of the operator that joins the heads.
        stored: Tells whether a node's value is known before the model runs.
        known: What was stacked for other operators that join heads. Its readers were looked at
            then; the original ones are still in the graph, unread.

    Attributes:
        found: What was stacked here.
    """

    def __init__(
        self, builder: GraphBuilder, stored: StoredNodes, known: Mapping[Heads, stacked_ops.Stacked]
    ) -> None:
        self._builder, self._stored, self._known = builder, stored, known
        self.found: dict[Heads, stacked_ops.Stacked] = {}

    def stacked(self, nodes: Heads) -> stacked_ops.Stacked:
        """One tensor for those that the heads have in one place.

        Raises:
            _DifferError: If the heads do not do the same there.
        """
        if nodes in self._known:
            return self._known[nodes]
        if nodes not in self.found:
            if len(self.found) > _MOST_NODES:
                raise _DifferError
            self.found[nodes] = self._stack(nodes)
        return self.found[nodes]

    def _stack(self, nodes: Heads) -> stacked_ops.Stacked:
        first = nodes[0]
        if all(node is first for node in nodes):
            return stacked_ops.Stacked(first, by_head=False, stored=self._stored(first))
        alike = all(is_tensor(node) and _is_alike(node, first) for node in nodes)
        if not alike:
            raise _DifferError
        slices = [read_slice(node) for node in nodes]
        if all(slices):
            return self._of_slices(nodes, cast(Sequence[Slice], slices))
        if all(map(self._stored, nodes)):
            weights = self._builder.call(aten.stack.default, list(nodes), 0)
            return stacked_ops.Stacked(weights, by_head=True, stored=True)
        same = all(node.target is first.target for node in nodes)
        if not same or not isinstance(first.target, torch._ops.OpOverload):
            raise _DifferError
        return self._of_operators(nodes)

    def _of_slices(self, nodes: Heads, slices: Sequence[Slice]) -> stacked_ops.Stacked:
        """Slices of one tensor for each head, or the same slice of a tensor of each head."""
        first, builder = slices[0], self._builder
        length = first.stop - first.start
        forms = {(part.dim, part.stop - part.start, part.keeps_dim) for part in slices}
        if len(forms) > 1:
            raise _DifferError
        starts = [part.start - first.start for part in slices]
        whole = first.source
        if any(part.source is not whole for part in slices):
            source = self.stacked(tuple(part.source for part in slices))
            if source.by_head:
                # The same slice of what each head has.
                if any(starts):
                    raise _DifferError
                args = (first.dim + 1, first.start, first.stop)
                part_of_all = builder.call(aten.slice.Tensor, source.node, *args)
                if not first.keeps_dim:
                    part_of_all = builder.call(aten.squeeze.dim, part_of_all, first.dim + 1)
                return stacked_ops.Stacked(part_of_all, True, source.stored, source.attends)
            whole = source.node
        if not any(starts):
            return stacked_ops.Stacked(nodes[0], by_head=False, stored=self._stored(whole))
        # Groups of heads may share one: 0, 0, 8, 8.
        group = starts.count(0)
        if starts != [position // group * length for position in range(len(slices))]:
            raise _DifferError
        stop = slices[-1].stop
        attends = is_attention(whole)
        if shape(whole)[first.dim] != stop - first.start:
            whole = builder.call(aten.slice.Tensor, whole, first.dim, first.start, stop)
        if first.keeps_dim:
            apart = [len(slices) // group, length]
            whole = builder.call(aten.unflatten.int, whole, first.dim, apart)
        by_head = stacked_ops.heads_in_front(builder, whole, first.dim)
        if group > 1:
            by_head = builder.call(aten.repeat_interleave.self_int, by_head, group, 0)
        return stacked_ops.Stacked(by_head, True, self._stored(first.source), attends)

    def _of_operators(self, nodes: Heads) -> stacked_ops.Stacked:
        first = nodes[0]
        numbers = stacked_ops.numbers_of(nodes)
        if numbers is not None:
            operand = self.stacked(tuple(cast(Node, node.args[0]) for node in nodes))
            numbered = stacked_ops.apply_numbers(self._builder, first, operand, numbers)
            if numbered is None:
                raise _DifferError
            return stacked_ops.Stacked(numbered, True, operand.stored, operand.attends)
        every = [arguments(node) for node in nodes]
        given = {name: self._argument([own[name] for own in every]) for name in every[0]}
        operands = [operand for value in given.values() for operand in _operands(value)]
        stored = all(operand.stored for operand in operands)
        if not any(operand.by_head for operand in operands):
            return stacked_ops.Stacked(first, by_head=False, stored=stored)
        result = stacked_ops.apply_stacked(self._builder, first, given)
        if result is None:
            raise _DifferError
        # Weights [B, S, keys] or [S, keys] are of one head: no dimension of heads, or of size 1.
        if op(first) in _ATTENTION and any(extent != 1 for extent in shape(first)[1:-2]):
            raise _DifferError
        attends = any(operand.attends for operand in operands)
        if attends and _regroups(first):
            raise _DifferError
        return stacked_ops.Stacked(result, True, stored, attends or op(first) in _ATTENTION)

    def _argument(self, values: Sequence[object]) -> object:
        first = values[0]
        if isinstance(first, (list, tuple)):
            if any(not isinstance(v, (list, tuple)) or len(v) != len(first) for v in values):
                raise _DifferError
            lists = cast(Sequence[Sequence[object]], values)
            return [self._argument(each) for each in zip(*lists, strict=True)]
        if all(is_tensor(value) for value in values):
            return self.stacked(cast(Heads, tuple(values)))
        if any(isinstance(value, Node) for value in values):
            sizes = [size_of(v.meta["val"] if isinstance(v, Node) else v) for v in values]
            values = [size == sizes[0] for size in sizes]
            if is_tensor(first) or not all(values):
                raise _DifferError
            return first
        if any(value != first or type(value) is not type(first) for value in values):
            raise _DifferError
        return first


def _operands(value: object) -> Iterator[stacked_ops.Stacked]:
    if isinstance(value, stacked_ops.Stacked):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _operands(item)


def _is_alike(a: Node, b: Node) -> bool:
    return shape(a) == shape(b) and tensor(a).dtype == tensor(b).dtype


def _regroups(node: Node) -> bool:
    """True for a view that splits a dimension or joins several: heads were folded into a batch."""
    if op(node) not in ("view", "reshape", "unsafe_view", "unflatten", "flatten"):
        return False
    before, after = (
        [extent for extent in shape(arg) if extent != 1] for arg in (cast(Node, node.args[0]), node)
    )
    return before != after


def _stack_summed(node: Node, stored: StoredNodes, known: dict[Heads, stacked_ops.Stacked]) -> None:
    """Heads that are added up, and other terms with them."""
    terms, adds = _terms(node)
    target = max((term.target for term in terms), key=[term.target for term in terms].count)
    alike = tuple(term for term in terms if term.target == target)
    # The first or the last may be a residual that happens to be the result of the same operator.
    for heads in (alike, alike[1:], alike[:-1]):
        if len(heads) < 2:
            return
        others = [term for term in terms if term not in heads and op(term) not in _ZEROS]
        # A term that is no head has no attentions but those in front of the heads.
        before = _attentions(heads[0])
        if not all(_attentions(term) <= before for term in others):
            continue
        total = _sum_of(node, heads, adds, stored, known)
        if total is None:
            continue
        builder = GraphBuilder(node.graph, node)
        for other in others:
            total = builder.call(aten.add.Tensor, total, other)
        node.replace_all_uses_with(total)
        return


def _attentions(node: Node) -> set[Node]:
    return {source for source in ancestors(node) if op(source) in _ATTENTION}


def _sum_of(
    node: Node,
    heads: Heads,
    joins: set[Node],
    stored: StoredNodes,
    known: dict[Heads, stacked_ops.Stacked],
) -> Node | None:
    """Insert the sum of all heads in front of the last addition."""
    builder, first = GraphBuilder(node.graph, node), heads[0] if heads else node
    inner = tuple(cast(Node, head.args[0]) for head in heads if is_view(head) and not casts(head))
    same = {(head.target, str(head.args[1:]), str(head.kwargs)) for head in heads}
    if len(inner) == len(heads) > 1 == len(same):
        total = _sum_of(node, inner, joins | set(heads), stored, known)
        target = cast(torch._ops.OpOverload, first.target)
        return total and builder.call(target, total, *first.args[1:], **first.kwargs)
    if len(heads) > 1 and all(_is_merging(head, stored) for head in heads):
        # The sum of y @ W over the heads is cat(y) @ cat(W).
        inputs = tuple(cast(Node, head.args[0]) for head in heads)
        found = _stack(node, inputs, joins | set(heads), stored, known)
        if found is None:
            return None
        return _projected(builder, heads, _merged(builder, found, rank(first) - 1))
    found = _stack(node, heads, joins, stored, known)
    return None if found is None else builder.call(aten.sum.dim_IntList, found.node, [0])


def _merged(builder: GraphBuilder, found: stacked_ops.Stacked, dim: int) -> Node:
    """Insert [..., H * D, ...] of [H, ..., D, ...], where D is dimension `dim` of a head."""
    apart = stacked_ops.heads_at(builder, found.node, dim)
    return builder.call(aten.flatten.using_ints, apart, dim, dim + 1)


def _is_merging(head: Node, stored: StoredNodes) -> bool:
    """True for a product with a matrix of weights."""
    if op(head) not in ("linear", "matmul", "mm") or head.kwargs:
        return False
    (x, weight), biases = cast(Heads, head.args[:2]), cast(Heads, head.args[2:])
    return not stored(x) and rank(weight) == 2 and all(map(stored, (weight, *biases)))


def _projected(builder: GraphBuilder, heads: Heads, merged: Node) -> Node:
    """Insert the product of all heads with all of their weights."""
    weights = [head.args[1] for head in heads]
    if op(heads[0]) != "linear":
        return builder.call(aten.matmul.default, merged, builder.call(aten.cat.default, weights, 0))
    biases = [bias for head in heads for bias in head.args[2:]]
    bias = None
    if biases:
        bias = builder.call(aten.sum.dim_IntList, builder.call(aten.stack.default, biases, 0), [0])
    weight = builder.call(aten.cat.default, weights, 1)
    return builder.call(aten.linear.default, merged, weight, bias)


def _adds(node: Node) -> bool:
    """True for a sum of two tensors of its own size."""
    if not is_tensor(node) or op(node) != "add" or argument(node, "alpha", 1) != 1:
        return False
    return all(is_tensor(arg) and _is_alike(cast(Node, arg), node) for arg in node.args[:2])


def _is_added_on(node: Node) -> bool:
    """True where a sum is a summand of the next, and of nothing else, unlike a residual stream."""
    return len(node.users) == 1 and _adds(next(iter(node.users)))


def _terms(node: Node) -> tuple[list[Node], set[Node]]:
    """Return the summands of a row of additions, in order, and the additions."""
    terms: list[Node] = []
    adds, stack = {node}, [node]
    while stack:
        current = stack.pop()
        inner = current is node or (_adds(current) and _is_added_on(current))
        if inner and len(adds) < _NEAR:
            adds.add(current)
            stack += cast(tuple[Node, Node], tuple(reversed(current.args[:2])))
        elif op(current) == "add" and current.args[1] == 0:  # `sum` of Python begins with 0
            adds.add(current)
            stack.append(cast(Node, current.args[0]))
        else:
            terms.append(current)
    return terms, adds


def _stack(
    node: Node,
    heads: Heads,
    joins: set[Node],
    stored: StoredNodes,
    known: dict[Heads, stacked_ops.Stacked],
) -> stacked_ops.Stacked | None:
    """Insert the stacked heads in front of the operator that joins them, if that is what it does.

    Args:
        joins: The operators that join them.
    """
    near = (islice(ancestors(head), _NEAR) for head in heads)
    attend = all(any(op(source) in _ATTENTION for source in sources) for sources in near)
    if len(set(heads)) != len(heads) or len(heads) < 2 or not attend:
        return None
    before = set(node.graph.nodes)
    stacker = _Stacker(GraphBuilder(node.graph, node), stored, known)
    try:
        result = stacker.stacked(heads)
        fits = result.by_head and result.attends and _are_read_here(stacker.found, joins)
    except _DifferError:
        fits = False
    if fits:
        known.update(stacker.found)
        return result
    for inserted in reversed([new for new in node.graph.nodes if new not in before]):
        node.graph.erase_node(inserted)
    return None


def _are_read_here(found: Mapping[Heads, stacked_ops.Stacked], joins: set[Node]) -> bool:
    """Tell whether the attention of single heads is read only to join the heads."""
    of_heads = {node for nodes, stacked in found.items() if stacked.attends for node in nodes}
    for nodes, stacked in found.items():
        for user in (user for node in nodes for user in node.users if stacked.attends):
            joined = op(user) in ("cat", "stack") and tuple(user.all_input_nodes) == nodes
            if user not in of_heads | joins and not joined and not reads_shape_only(user):
                return False
    return True

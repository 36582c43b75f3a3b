"""Apply operators of single heads to all heads at once.

A stacked tensor has one dimension more than that of a head, in front: [H, ...]. A tensor that is
the same for all heads stays as it is, and is broadcast.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import arguments, is_tensor, op, rank, shape, source_line, tensor
from moh_deploy.frontend.fx.known_values import Constants, StoredNodes, is_random

aten = torch.ops.aten


@dataclass(frozen=True)
class Stacked:
    """A tensor of all heads."""

    node: Node  # [H, ...], or that of every head
    by_head: bool  # true where the heads have values of their own
    stored: bool = False  # true where it is known before the model runs
    attends: bool = False  # true where it is computed of the attention weights of each head

    @property
    def rank(self) -> int:
        """Of the tensor of one head."""
        return rank(self.node) - self.by_head


Arguments = Mapping[str, object]
Rule = Callable[[GraphBuilder, Node, Arguments], Node | None]


def apply_stacked(builder: GraphBuilder, first: Node, given: Arguments) -> Node | None:
    """Insert an operator that works on all heads; None where it is not known how.

    Args:
        first: The operator of the first head.
        given: All of its arguments by name, tensors as `Stacked`; at least one differs by head.
    """
    assert isinstance(first.target, torch._ops.OpOverload)
    rule = _RULES.get(op(first))
    if rule is None and torch.Tag.pointwise in first.target.tags and not is_random(first):
        rule = _elementwise
    return None if rule is None else rule(builder, first, given)


def numbers_of(nodes: Sequence[Node]) -> list[int | float] | None:
    """Return the number that each head's operator has, as `chosen == h`; None where they are no
    elementwise operators of a tensor and a number, or all have the same."""
    target = nodes[0].target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return None
    found = [node.args[1] for node in nodes if len(node.args) == 2 and not node.kwargs]
    known = [n for n in found if isinstance(n, (int, float)) and not isinstance(n, bool)]
    return known if len(known) == len(nodes) and len(set(known)) > 1 else None


def apply_numbers(
    builder: GraphBuilder, first: Node, operand: Stacked, numbers: Sequence[int | float]
) -> Node | None:
    """Insert an elementwise operator with a number of its own for each head; None where it is not
    known how.

    Args:
        first: The operator of the first head.
        operand: What it reads, of all heads.
        numbers: What each head has beside.
    """
    dtype = tensor(operand.node).dtype
    target = getattr(cast(torch._ops.OpOverload, first.target).overloadpacket, "Tensor", None)
    # A whole number beside a float is of that dtype; a tensor of fractions would not be of this.
    if target is None or not (dtype.is_floating_point or all(isinstance(n, int) for n in numbers)):
        return None
    scalars = [builder.call(aten.scalar_tensor.default, number, dtype=dtype) for number in numbers]
    by_head = Stacked(builder.call(aten.stack.default, scalars, 0), by_head=True)
    return builder.call(target, *(_with_rank(builder, x, rank(first)) for x in (operand, by_head)))


def heads_in_front(builder: GraphBuilder, node: Node, dim: int) -> Node:
    """Insert a permutation that brings a dimension to the front."""
    order = [dim, *(axis for axis in range(rank(node)) if axis != dim)]
    return builder.call(aten.permute.default, node, order) if dim else node


def heads_at(builder: GraphBuilder, stacked: Node, dim: int) -> Node:
    """Insert a permutation that brings the heads from the front to another dimension."""
    order = list(range(1, rank(stacked)))
    order.insert(dim, 0)
    return builder.call(aten.permute.default, stacked, order) if dim else stacked


def for_each_head(builder: GraphBuilder, operand: Stacked, heads: int) -> Node:
    """A tensor [H, ...]; one that is common to all heads is repeated."""
    if operand.by_head:
        return operand.node
    apart = builder.call(aten.unsqueeze.default, operand.node, 0)
    return builder.call(aten.expand.default, apart, [heads, *[-1] * operand.rank])


def _same(builder: GraphBuilder, first: Node, given: Arguments) -> Node:
    """The operator itself, on other arguments."""
    nodes = {name: item.node if isinstance(item, Stacked) else item for name, item in given.items()}
    return builder.apply(first.target, nodes)


def _elementwise(builder: GraphBuilder, first: Node, given: Arguments) -> Node:
    """Heads in front, and the other dimensions aligned at the right as those of one head are."""
    aligned = {
        name: _with_rank(builder, item, rank(first)) if isinstance(item, Stacked) else item
        for name, item in given.items()
    }
    return _same(builder, first, aligned)


def _with_rank(builder: GraphBuilder, operand: Stacked, wanted: int) -> Node:
    """A tensor with dimensions of size 1 behind the heads, as many as those of a head's result."""
    node = operand.node
    while operand.by_head and rank(node) - 1 < wanted:
        node = builder.call(aten.unsqueeze.default, node, 1)
    return node


def _matmul(builder: GraphBuilder, first: Node, given: Arguments) -> Node | None:
    a, b = cast(tuple[Stacked, Stacked], tuple(given.values())[:2])
    if min(a.rank, b.rank) < 2:
        return None
    if not a.by_head and b.rank == 2 and b.stored:
        # x @ W of each head: columns of one product, as in any other projection.
        return _columns(builder, a.node, builder.call(aten.permute.default, b.node, [0, 2, 1]))
    operands = [_with_rank(builder, stacked, max(a.rank, b.rank)) for stacked in (a, b)]
    return builder.call(aten.matmul.default, *operands)


def _linear(builder: GraphBuilder, first: Node, given: Arguments) -> Node | None:
    x, weight = (cast(Stacked, given[name]) for name in ("input", "weight"))
    bias = given["bias"]
    if not weight.by_head:
        plain = not isinstance(bias, Stacked) or not bias.by_head
        return _same(builder, first, given) if plain else None
    if isinstance(bias, Stacked) and not bias.by_head:
        return None
    if not x.by_head:
        return _columns(builder, x.node, weight.node, bias)
    turned = builder.call(aten.permute.default, weight.node, [0, 2, 1])
    aligned = _with_rank(builder, Stacked(turned, by_head=True), rank(first))
    product = builder.call(aten.matmul.default, x.node, aligned)
    if not isinstance(bias, Stacked):
        return product
    return builder.call(aten.add.Tensor, product, _with_rank(builder, bias, rank(first)))


def _columns(builder: GraphBuilder, x: Node, weight: Node, bias: object = None) -> Node:
    """x [..., C] times the weights of all heads [H, D, C]: one product, cut into heads."""
    heads, width, _ = shape(weight)
    rows = builder.call(aten.flatten.using_ints, weight, 0, 1)
    columns = None
    if isinstance(bias, Stacked):
        columns = builder.call(aten.flatten.using_ints, bias.node, 0, 1)
    product = builder.call(aten.linear.default, x, rows, columns)
    apart = builder.call(aten.unflatten.int, product, -1, [int(heads), int(width)])
    return heads_in_front(builder, apart, rank(apart) - 2)


def _einsum(builder: GraphBuilder, first: Node, given: Arguments) -> Node | None:
    operands = cast(Sequence[Stacked], given["tensors"])
    inputs, arrow, result = cast(str, given["equation"]).replace(" ", "").partition("->")
    free = next(letter for letter in "zyxwvutsrqponmlkjihgfedcba" if letter not in inputs)
    if not arrow:
        return None
    terms = [
        free + term if operand.by_head else term
        for term, operand in zip(inputs.split(","), operands, strict=True)
    ]
    nodes = [operand.node for operand in operands]
    return builder.call(aten.einsum.default, f"{','.join(terms)}->{free}{result}", nodes)


def _attention(builder: GraphBuilder, first: Node, given: Arguments) -> Node | None:
    tensors = [item for item in given.values() if isinstance(item, Stacked)]
    heads = next(int(shape(stacked.node)[0]) for stacked in tensors if stacked.by_head)
    if given["enable_gqa"] or given["dropout_p"]:
        return None
    operands = {
        name: for_each_head(builder, cast(Stacked, given[name]), heads)
        for name in ("query", "key", "value")
    }
    mask = given["attn_mask"]
    if isinstance(mask, Stacked):
        mask = _with_rank(builder, mask, rank(first))
    return _same(builder, first, {**given, **operands, "attn_mask": mask})


def _concatenated(builder: GraphBuilder, first: Node, given: Arguments) -> Node:
    operands, dim = cast(Sequence[Stacked], given["tensors"]), given["dim"]
    heads = next(int(shape(operand.node)[0]) for operand in operands if operand.by_head)
    nodes = [for_each_head(builder, operand, heads) for operand in operands]
    return _same(builder, first, {"tensors": nodes, "dim": _behind_heads(dim)})


def _norm(builder: GraphBuilder, first: Node, given: Arguments) -> Node | None:
    """A norm whose weights differ by head is multiplied with them afterwards."""
    weights = {name: given.get(name) for name in ("weight", "bias")}
    if not any(isinstance(weight, Stacked) and weight.by_head for weight in weights.values()):
        return _same(builder, first, given)
    result = _same(builder, first, {**given, **dict.fromkeys(weights.keys() & given.keys())})
    for name, apply in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
        operand = weights[name]
        if isinstance(operand, Stacked):
            result = builder.call(apply, result, _with_rank(builder, operand, rank(first)))
    return result


def _along(*names: str) -> Rule:
    """Return an operator with the same arguments, its dimensions counted from the front."""

    def apply(builder: GraphBuilder, first: Node, given: Arguments) -> Node | None:
        if not set(names) <= given.keys() or not cast(Stacked, given["self"]).by_head:
            return None
        moved = {name: _behind_heads(given[name]) for name in names}
        return None if None in moved.values() else _same(builder, first, {**given, **moved})

    return apply


def _behind_heads(dims: object) -> object:
    if isinstance(dims, (list, tuple)):
        return [_behind_heads(dim) for dim in dims]
    return dims + 1 if isinstance(dims, int) and dims >= 0 else dims


def _permuted(builder: GraphBuilder, first: Node, given: Arguments) -> Node:
    order = [0, *(dim % rank(first) + 1 for dim in cast(Sequence[int], given["dims"]))]
    return _same(builder, first, {**given, "dims": order})


def _last_two(builder: GraphBuilder, first: Node, given: Arguments) -> Node | None:
    source = cast(Stacked, given["self"])
    return builder.call(aten.transpose.int, source.node, -1, -2) if rank(first) > 1 else None


def _reshaped(builder: GraphBuilder, first: Node, given: Arguments) -> Node:
    source = cast(Stacked, given["self"])
    sizes = [int(shape(source.node)[0]), *cast(Sequence[object], tuple(given.values())[1])]
    return builder.call(aten.reshape.default, source.node, sizes)


def _expanded(builder: GraphBuilder, first: Node, given: Arguments) -> Node:
    source = _with_rank(builder, cast(Stacked, given["self"]), rank(first))
    return builder.call(aten.expand.default, source, [-1, *cast(Sequence[object], given["size"])])


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "linear": _linear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("cat", "stack"), _concatenated),
    **dict.fromkeys(("layer_norm", "rms_norm"), _norm),
    **dict.fromkeys(("softmax", "unsqueeze", "squeeze", "unflatten"), _along("dim")),
    **dict.fromkeys(("mean", "sum", "amax", "safe_softmax"), _along("dim")),
    "transpose": _along("dim0", "dim1"),
    "flatten": _along("start_dim", "end_dim"),
    "permute": _permuted,
    **dict.fromkeys(("t", "mT", "numpy_T"), _last_two),
    **dict.fromkeys(("view", "reshape", "unsafe_view"), _reshaped),
    "expand": _expanded,
    **dict.fromkeys(("where", "masked_fill"), _elementwise),
    **dict.fromkeys(("contiguous", "clone", "alias", "to", "to_copy"), _along()),
}


# Functions that `torch.vmap` runs for all heads, as operators on all heads.
#
# What is traced are the operators on one head, between `_add_batch_dim` and `_remove_batch_dim`, on
# tensors of a kind that nothing else can read.


def write_out_vmap(program: ExportedProgram) -> None:
    """Let operators on all heads take over from those that were traced under `torch.vmap`.

    Raises:
        ExportError: If it is not known how an operator works on all heads.
    """
    graph = program.graph_module.graph
    if not any(op(node) == "_add_batch_dim" for node in graph.nodes):
        return
    stored = StoredNodes(graph, Constants(program))
    found: dict[Node, Stacked] = {}
    region: list[Node] = []
    for node in list(graph.nodes):
        builder = GraphBuilder(graph, node)
        if op(node) == "_add_batch_dim":
            source, dim = cast(tuple[Node, int], node.args[:2])
            if source in found:
                raise _refused(node, "vmap of vmap")
            in_front = heads_in_front(builder, source, dim)
            found[node] = Stacked(in_front, by_head=True, stored=stored(source))
        elif op(node) == "_remove_batch_dim":
            source, _, size, dim = cast(tuple[Node, int, int, int], node.args)
            result = found.get(source, Stacked(source, by_head=False))
            whole = for_each_head(builder, result, size)
            node.replace_all_uses_with(heads_at(builder, whole, dim))
        elif any(source in found for source in node.all_input_nodes):
            target = node.target
            if not isinstance(target, torch._ops.OpOverload):
                raise _refused(node, op(node))
            given = {name: _of_heads(value, found) for name, value in arguments(node).items()}
            on_all = apply_stacked(builder, node, given)
            if on_all is None:
                raise _refused(node, str(target))
            found[node] = Stacked(on_all, by_head=True)
        else:
            continue
        region.append(node)
    for node in reversed(region):
        graph.erase_node(node)
    program.graph_module.recompile()


def _of_heads(value: object, found: Mapping[Node, Stacked]) -> object:
    """An argument with tensors as `Stacked`."""
    if isinstance(value, (list, tuple)):
        return [_of_heads(part, found) for part in value]
    if isinstance(value, Node) and is_tensor(value):
        return found.get(value, Stacked(value, by_head=False))
    return value


def _refused(node: Node, what: str) -> ExportError:
    place = source_line(node)
    return ExportError(
        f"{what} under torch.vmap has no form for all heads at once"
        + (f" ({place})." if place else "."),
        hint="Write it with one more dimension instead, or as a loop over the heads.",
    )

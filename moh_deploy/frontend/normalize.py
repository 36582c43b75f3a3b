"""Bring a traced program into the form that recognition and runtimes read well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.factor import factor_out_slices, is_joined
from moh_deploy.frontend.functionalize import functionalize
from moh_deploy.frontend.join_parts import join_parts
from moh_deploy.frontend.recognize.axes import fresh_layout
from moh_deploy.frontend.recognize.graph import argument, op, shape, tensor
from moh_deploy.frontend.recognize.views import REORDERS, casts, forward
from moh_deploy.frontend.rewrite.builder import GraphBuilder
from moh_deploy.frontend.spread import replace_spreads
from moh_deploy.frontend.unfold import replace_unfold
from moh_deploy.frontend.unread_state import drop_unread_state
from moh_deploy.frontend.written_slices import read_written_slices
from moh_deploy.frontend.written_softmax import is_division, replace_written_softmax

aten = torch.ops.aten

_DROPOUTS = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"])


def normalize(program: ExportedProgram) -> ExportedProgram:
    """Return a program of equal results without in-place operators, im2col, einsum of many tensors,
    softmax that is written out, dropout that drops nothing, casts to what is given, transpositions
    that undo one another, and state that no result depends on.
    """
    program = functionalize(program)
    drop_unread_state(program)
    graph = program.graph_module.graph
    read_written_slices(graph)
    replace_spreads(program)
    for node in list(graph.nodes):
        if op(node) == "einsum":
            _pair_up(GraphBuilder(graph, node), node)
        elif op(node) == "masked_fill" and node.args[2] == 0:
            _keep_instead(GraphBuilder(graph, node), node)
        elif op(node) == "baddbmm":
            _write_out(GraphBuilder(graph, node), node)
        elif op(node) == "addcmul":
            _write_product_out(GraphBuilder(graph, node), node)
        elif is_division(node):
            replace_written_softmax(GraphBuilder(graph, node), node)
        elif op(node) == "im2col":
            replace_unfold(GraphBuilder(graph, node), node)
        elif (op(node) in _DROPOUTS and not argument(node, "train")) or _casts_nothing(node):
            _erase(node)
        elif op(node) == "_assert_tensor_metadata":  # dtypes are as they were traced
            graph.erase_node(node)
        elif (origin := _transposed_twice(node)) is not None:
            node.replace_all_uses_with(origin)
        elif is_joined(node):
            product = factor_out_slices(GraphBuilder(graph, node), node)
            if product is not None:
                node.replace_all_uses_with(product)
    for node in list(graph.nodes):
        join_parts(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _casts_nothing(node: Node) -> bool:
    """`x.float()` where x is that already; torch writes a cast down nevertheless."""
    source = node.args[0] if node.target is aten.to.dtype else None
    return isinstance(source, Node) and not casts(node) and argument(node, "memory_format") is None


def _erase(node: Node) -> None:
    """Nothing would do it later: torch takes an unused dropout for one that is needed."""
    if any(user.op == "output" for user in node.users):
        return  # whose name is the program's
    node.replace_all_uses_with(cast(Node, node.args[0]))
    node.graph.erase_node(node)


def _transposed_twice(node: Node) -> Node | None:
    """The tensor whose dimensions a node transposes back; None where it does not."""
    between = node.args[0] if op(node) in REORDERS else None
    if not isinstance(between, Node) or op(between) not in REORDERS:
        return None
    if any(user.op == "output" for user in node.users):
        return None  # whose name is the program's
    origin = cast(Node, between.args[0])
    layout = fresh_layout(shape(origin))
    moved = forward(between, layout)
    return origin if moved is not None and forward(node, moved) == layout else None


def _pair_up(builder: GraphBuilder, node: Node) -> None:
    """Multiply the operands of an einsum two at a time, from left to right as torch does."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str)
    factors = cast(Sequence[Node], operands)
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(factors) < 3 or not arrow or "..." in equation:
        return
    product, letters = factors[0], terms[0]
    for position in range(1, len(factors) - 1):
        needed = set(result).union(*terms[position + 1 :])
        both = dict.fromkeys(letters + terms[position])
        kept = "".join(letter for letter in both if letter in needed)
        product = builder.call(
            aten.einsum.default,
            f"{letters},{terms[position]}->{kept}",
            [product, factors[position]],
        )
        letters = kept
    node.args = (f"{letters},{terms[-1]}->{result}", [product, factors[-1]])
    node.kwargs = {}


def _write_out(builder: GraphBuilder, node: Node) -> None:
    """`baddbmm(bias, a, b)` is `beta * bias + alpha * (a @ b)`."""
    bias, first, second = cast(tuple[Node, Node, Node], node.args[:3])
    product = builder.call(aten.bmm.default, first, second)
    product = _scaled(builder, product, argument(node, "alpha", 1))
    bias = _scaled(builder, bias, argument(node, "beta", 1))
    node.replace_all_uses_with(builder.call(aten.add.Tensor, product, bias))


def _write_product_out(builder: GraphBuilder, node: Node) -> None:
    """`addcmul(base, a, b)` is `base + value * a * b`; a base of zeros adds nothing."""
    base, first, second = cast(tuple[Node, Node, Node], node.args[:3])
    product = builder.call(aten.mul.Tensor, first, second)
    product = _scaled(builder, product, argument(node, "value", 1))
    adds_nothing = op(base) in ("zeros", "zeros_like", "new_zeros")
    if not adds_nothing or shape(product) != shape(node) or not _same_dtype(product, node):
        product = builder.call(aten.add.Tensor, base, product)
    node.replace_all_uses_with(product)


def _same_dtype(a: Node, b: Node) -> bool:
    return tensor(a).dtype == tensor(b).dtype


def _scaled(builder: GraphBuilder, node: Node, factor: object) -> Node:
    return node if factor == 1 else builder.call(aten.mul.Tensor, node, factor)


def _keep_instead(builder: GraphBuilder, node: Node) -> None:
    """`masked_fill(x, dropped, 0)` is `where(not dropped, x, 0)`."""
    tensor, dropped = cast(tuple[Node, Node], node.args[:2])
    kept = builder.call(aten.logical_not.default, dropped)
    node.replace_all_uses_with(builder.call(aten.where.ScalarOther, kept, tensor, 0))

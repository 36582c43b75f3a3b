"""Operators that do several things at once, written out: what recognition reads is single products.

An einsum of many tensors is a row of einsums of two; `baddbmm` and `addcmul` are products and a
sum; `masked_fill` with 0 is a choice by a mask of what is kept; `expand_as` is an expansion to a
size, and reads nothing else of the other tensor; so is `repeat_interleave` by a dynamic size. A
split into parts of a dynamic size is a choice of parts; a sigmoid of the best is one of all.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import cast

import sympy
import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.axes import fresh_layout, resolve, size_of
from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, rank, shape, tensor
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.views import REORDERS, backward, broadcast, casts, forward

aten = torch.ops.aten

_PRODUCTS = frozenset(["einsum", "matmul", "bmm"])
# ONNX Runtime has no triangle of them; older speech toolkits write masks so.
_NARROW = frozenset([torch.uint8, torch.int8, torch.int16])


def decompose(builder: GraphBuilder, node: Node) -> None:
    """Let simpler operators take over from a node, if it does several things at once.

    Args:
        builder: Inserts in front of `node`.
    """
    name = op(node)
    if name == "einsum":
        _pair_up(builder, node)
    elif name == "masked_fill" and node.args[2] == 0:
        # `masked_fill(x, dropped, 0)` is `where(not dropped, x, 0)`; a mask stays one.
        source, dropped = cast(tuple[Node, Node], node.args[:2])
        kept = builder.call(aten.logical_not.default, dropped)
        if tensor(source).dtype == torch.bool:  # `where` would return whole numbers
            chosen = builder.call(aten.logical_and.default, source, kept)
        else:
            chosen = builder.call(aten.where.ScalarOther, kept, source, 0)
        node.replace_all_uses_with(chosen)
    elif name in ("baddbmm", "addcmul"):
        _write_out(builder, node)
    elif name == "sum" and op(node.all_input_nodes[0]) in _PRODUCTS:
        _sum_inside(builder, node)
    elif name == "expand_as":
        # `expand_as(x, other)` is `expand(x, sizes of other)`: it reads no value of `other`.
        source = cast(Node, node.args[0])
        own = [*[None] * (rank(node) - rank(source)), *shape(source)]
        sizes = [
            -1 if extent == before else int(extent) if extent.is_Integer else builder.size(extent)
            for extent, before in zip(shape(node), own, strict=True)
        ]
        node.replace_all_uses_with(builder.call(aten.expand.default, source, sizes))
    elif name == "repeat_interleave" and node.target is aten.repeat_interleave.self_int:
        _repeat_by_size(builder, node)
    elif name in ("tril", "triu") and tensor(node).dtype in _NARROW:
        widened, *others = cast(Sequence[Node], node.args)
        wide = builder.call(aten.to.dtype, widened, torch.int64)
        kept = builder.call(cast(OpOverload, node.target), wide, *others, **node.kwargs)
        node.replace_all_uses_with(builder.call(aten.to.dtype, kept, tensor(node).dtype))
    elif name in ("split", "chunk"):
        _select_parts(builder, node)
    elif name == "sigmoid":
        _choose_behind(builder, node)


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
    """`baddbmm(base, a, b)` is `beta * base + alpha * (a @ b)`, `addcmul` `base + value * a * b`;
    a beta of 0 leaves the base out, and a base of zeros adds nothing."""
    base, first, second = cast(tuple[Node, Node, Node], node.args[:3])

    def scaled(factor: Node, name: str) -> Node:
        scale = argument(node, name, 1)
        return factor if scale == 1 else builder.call(aten.mul.Tensor, factor, scale)

    if op(node) == "baddbmm":
        product = scaled(builder.call(aten.bmm.default, first, second), "alpha")
        # Not a base times 0: it may be unwritten memory, NaN included.
        if argument(node, "beta", 1) != 0:
            product = builder.call(aten.add.Tensor, product, scaled(base, "beta"))
    else:
        product = scaled(builder.call(aten.mul.Tensor, first, second), "value")
        alike = shape(product) == shape(node) and tensor(product).dtype == tensor(node).dtype
        if not alike or op(base) not in ("zeros", "zeros_like", "new_zeros"):
            product = builder.call(aten.add.Tensor, base, product)
    node.replace_all_uses_with(product)


def _sum_inside(builder: GraphBuilder, node: Node) -> None:
    """The sum of a product over dimensions is an einsum without their letters."""
    source, dims = node.all_input_nodes[0], argument(node, "dim")
    product = contraction(source)
    plain = product is not None and product.summed and argument(node, "dtype") is None
    if product is None or not plain or len(source.users) > 1 or not isinstance(dims, (list, tuple)):
        return
    summed = {cast(int, dim) % rank(source) for dim in dims}
    kept = [label for at, label in enumerate(product.out) if at not in summed]
    if None in kept:
        return
    labels_of_both = sorted({label for labels in product.labels for label in labels if label})
    letters = {label: chr(ord("a") + at) for at, label in enumerate(labels_of_both)}
    operands = list(product.operands)
    for side, labels in enumerate(product.labels):
        # Without the dimensions of size 1 that are repeated for the other one.
        for position in reversed(range(len(labels))):
            if labels[position] is None:
                operands[side] = builder.call(aten.squeeze.dim, operands[side], position)
    terms = ["".join(letters[label] for label in labels if label) for labels in product.labels]
    result = "".join(letters[label] for label in kept if label)
    total = builder.call(aten.einsum.default, f"{terms[0]},{terms[1]}->{result}", operands)
    for dim in sorted(summed) if argument(node, "keepdim", False) else ():
        total = builder.call(aten.unsqueeze.default, total, dim)
    node.replace_all_uses_with(total)


def _repeat_by_size(builder: GraphBuilder, node: Node) -> None:
    """`repeat_interleave(x, n, dim)` by a dynamic size n, which the exporter gets wrong: a new
    dimension of size n behind `dim`, joined with it."""
    source, times, dim = (argument(node, name) for name in ("self", "repeats", "dim"))
    if not isinstance(times, Node):
        return
    if dim is None:
        source, dim = builder.call(aten.flatten.using_ints, source), 0
    assert isinstance(dim, int)
    dim %= rank(node)
    apart = builder.call(aten.unsqueeze.default, source, dim + 1)
    sizes = [times if axis == dim + 1 else -1 for axis in range(rank(apart))]
    repeated = builder.call(aten.expand.default, apart, sizes)
    node.replace_all_uses_with(builder.call(aten.flatten.using_ints, repeated, dim, dim + 1))


def _select_parts(builder: GraphBuilder, node: Node) -> None:
    """`split(x, x.shape[0] // 5)[i]` is entry i of `unflatten(x, 0, [5, -1])`, which says that
    there are five: heads that were joined with a dynamic batch. The exporter fails at the split."""
    source, parts = cast(Node, node.args[0]), node.meta["val"]
    dim = cast(int, argument(node, "dim", 0)) % rank(source)
    extent = shape(source)[dim]
    if extent.is_Integer or sympy.expand(extent - len(parts) * size_of(parts[-1].shape[dim])) != 0:
        return
    apart = builder.call(aten.unflatten.int, source, dim, [len(parts), -1])
    for part in list(node.users):
        part.replace_all_uses_with(builder.call(aten.select.int, apart, dim, part.args[1]))


def _choose_behind(builder: GraphBuilder, node: Node) -> None:
    """`sigmoid(x.topk(k).values)` is `sigmoid(x).gather(x.topk(k).indices)`, element by element:
    routers that weigh the chosen only are read as those that weigh all."""
    values = cast(Node, node.args[0])
    topk = cast(Node, values.args[0]) if op(values) == "getitem" and values.args[1] == 0 else None
    if topk is None or op(topk) != "topk":
        return
    every = builder.call(aten.sigmoid.default, topk.args[0])
    places = builder.call(operator.getitem, topk, 1)
    chosen = builder.call(aten.gather.default, every, argument(topk, "dim", -1), places)
    node.replace_all_uses_with(chosen)


# Sliding windows (`unfold`, im2col) as slices of the padded image.
#
# Exporters gather every window element by index, which is the slowest operator of such a model. The
# taps of a window are strided slices of one padded image; nothing is gathered.


_TO_THE_END = 2**63 - 1


def replace_unfold(builder: GraphBuilder, node: Node) -> None:
    """Let slices of the padded image take over from an `im2col` node on a batch of images.

    Args:
        builder: Inserts in front of `node`.
        node: `im2col` of an image [B, C, H, W]; an image without a batch stays as it is.
    """
    image = cast(Node, node.args[0])
    if rank(image) != 4:
        return
    kernel, dilation, padding, stride = (
        cast(Sequence[int], argument(node, name))
        for name in ("kernel_size", "dilation", "padding", "stride")
    )
    if any(padding):
        top, left = padding
        image = builder.call(aten.constant_pad_nd.default, image, [left, left, top, top], 0.0)
    taps: list[Node] = []
    for at in itertools.product(range(kernel[0]), range(kernel[1])):
        # One element of every window, [B, C, Ho, Wo]; ends count from the far side, for any size.
        tap = image
        for axis in (0, 1):
            start = at[axis] * dilation[axis]
            missing = (kernel[axis] - 1 - at[axis]) * dilation[axis]
            end = -missing if missing else _TO_THE_END
            tap = builder.call(aten.slice.Tensor, tap, axis + 2, start, end, stride[axis])
        taps.append(tap)
    stacked = builder.call(aten.stack.default, taps, 2)  # [B, C, kh*kw, Ho, Wo]
    windows = builder.call(aten.flatten.using_ints, stacked, 3, 4)
    node.replace_all_uses_with(builder.call(aten.flatten.using_ints, windows, 1, 2))


# Operators without effect: dropout that drops nothing, casts to what is given, transpositions that
# undo one another, and what asserts that dtypes are as they were traced.


_DROPOUTS = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"])


def drop_no_op(node: Node) -> None:
    """Let readers read the input of a node that has no effect, and leave out an assertion."""
    if op(node) == "assert_tensor_metadata":
        node.graph.erase_node(node)
    elif any(user.op == "output" for user in node.users):
        pass  # whose name is the program's
    elif (op(node) in _DROPOUTS and not argument(node, "train")) or (
        # `x.float()` where x is that already; torch writes a cast down nevertheless.
        node.target is aten.to.dtype and not casts(node) and not argument(node, "memory_format")
    ):
        # Nothing would erase it later: torch takes an unused dropout for one that is needed.
        node.replace_all_uses_with(cast(Node, node.args[0]))
        node.graph.erase_node(node)
    elif op(node) == "squeeze" and shape(node) == shape(source := cast(Node, node.args[0])):
        # Of a dimension that is not 1, which torch leaves and ONNX refuses.
        node.replace_all_uses_with(source)
    elif op(node) in REORDERS and op(between := cast(Node, node.args[0])) in REORDERS:
        # Two transpositions may undo one another.
        origin = cast(Node, between.args[0])
        layout = fresh_layout(shape(origin))
        moved = forward(between, layout)
        if moved is not None and forward(node, moved) == layout:
            node.replace_all_uses_with(origin)


# Softmax that is written out, as the operator: `exp(x - max(x)) / sum(exp(x - max(x)))`.


DIVISIONS = frozenset(["div", "divide", "true_divide"])


def replace_written_softmax(builder: GraphBuilder, node: Node) -> None:
    """Let a softmax take over from a division, if that is one.

    Args:
        builder: Inserts in front of `node`, one of `DIVISIONS`.
    """
    powers = node.args[0]
    if not is_tensor(powers) or op(cast(Node, powers)) != "exp" or node.kwargs:
        return
    powers = cast(Node, powers)
    dim = _reduced_dim(powers, node.args[1], "sum")
    if dim is None or shape(node) != shape(powers):
        return
    scores = _without_maximum(cast(Node, powers.args[0]), dim)
    if tensor(scores).dtype != tensor(node).dtype:
        return
    node.replace_all_uses_with(builder.call(aten.softmax.int, scores, dim))


def replace_safe_softmax(builder: GraphBuilder, node: Node) -> None:
    """Let `_safe_softmax`, which is 0 in rows of -inf, take over from what torch decomposes it
    into: `where(all(scores == -inf), 0, softmax(scores))`.

    Args:
        builder: Inserts in front of `node`, a `where`.
    """
    hidden, zero, weights = cast(tuple[Node, Node, Node], node.args)
    if not all(map(is_tensor, node.args)) or op(weights) != "softmax":
        return
    scores, dim = cast(Node, weights.args[0]), cast(int, argument(weights, "dim"))
    # Core ATen has no `all`: it is `not any(not ...)`.
    negated = op(hidden) == "logical_not"
    rows = cast(Node, hidden.args[0]) if negated else hidden
    each = cast(Node, rows.args[0]) if op(rows) in ("any", "all") else rows
    equal = cast(Node, each.args[0]) if negated and op(each) == "logical_not" else each
    if (
        op(zero) in ("full_like", "zeros_like")
        and argument(zero, "fill_value", 0) == 0
        and equal.target is aten.eq.Scalar
        and equal.args == (scores, -math.inf)
        and negated == (equal is not each)
        and _reduced_dim(each, rows, "any" if negated else "all") == dim % rank(weights)
        and shape(node) == shape(weights)
        and tensor(node).dtype == tensor(scores).dtype
    ):
        node.replace_all_uses_with(builder.call(aten._safe_softmax.default, scores, dim))


def _without_maximum(scores: Node, dim: int) -> Node:
    """The scores before their maximum was subtracted, which a softmax does itself."""
    if op(scores) not in ("sub", "subtract") or argument(scores, "alpha", 1) != 1:
        return scores
    whole, subtracted = scores.args[:2]
    if not is_tensor(whole) or shape(cast(Node, whole)) != shape(scores):
        return scores
    found = _reduced_dim(cast(Node, whole), subtracted, "amax", "max")
    return cast(Node, whole) if found == dim else scores


def _reduced_dim(whole: Node, value: object, *reductions: str) -> int | None:
    """The dimension that a tensor is reduced along to make a value that is broadcast against it;
    None where the value is something else."""
    layout = fresh_layout(shape(whole))
    aligned = broadcast(cast(Node, value), layout) if is_tensor(value) else None
    if aligned is None:
        return None
    node, found = cast(Node, value), aligned
    while (step := backward(node, found)) is not None:
        node, found = step
    if op(node) == "getitem" and node.args[1] == 0:  # max gives the places, too
        node = cast(Node, node.args[0])
    if op(node) not in reductions or node.args[0] is not whole or argument(node, "dtype"):
        return None
    dims = argument(node, "dim")
    if isinstance(dims, Sequence):
        dims = dims[0] if len(dims) == 1 else None
    if not isinstance(dims, int):
        return None
    dim = dims % rank(whole)
    # The reduced tensor is aligned with that very dimension left out.
    kept = ((),) if argument(node, "keepdim", False) else ()
    return dim if resolve(found) == resolve((*layout[:dim], *kept, *layout[dim + 1 :])) else None


# Gates that a matrix of 0 and 1 repeats for each channel of their heads, as a repetition.


# Heads times channels of a large model; larger weights are not looked at.
_MOST_ELEMENTS = 1 << 20


def replace_spreads(program: ExportedProgram) -> None:
    """Let repetitions take over from products with matrices that repeat each column.

    `x @ [[1, 1, 0, 0], [0, 0, 1, 1]]` is `repeat_interleave(x, 2, dim=-1)`; `x @ eye` is `x`.
    """
    graph, known = program.graph_module.graph, KnownValues(program)
    for node in list(graph.nodes):
        is_linear = op(node) == "linear"
        if op(node) not in ("matmul", "mm", "linear"):
            continue
        source, weight = cast(tuple[Node, Node], node.args[:2])
        bias = argument(node, "bias") if is_linear else None
        if rank(weight) != 2 or tensor(weight).numel() > _MOST_ELEMENTS or not known.varies(source):
            continue
        value = known(weight)
        if value is None:
            continue
        matrix = value.mT if is_linear else value  # [rows, columns]
        # How often a product with the matrix repeats each entry.
        rows, columns = matrix.shape
        times = columns // rows if rows else 0
        if times < 1 or times * rows != columns or int(matrix[:, 0].count_nonzero()) != 1:
            continue
        repeats = torch.eye(rows, dtype=matrix.dtype, device=matrix.device)
        if not torch.equal(matrix, repeats.repeat_interleave(times, 1)):
            continue
        # nn.MultiheadAttention has an output projection, which some set to the identity.
        added = None if bias is None else known(cast(Node, bias))
        if bias is not None and (added is None or bool(added.any())):
            continue
        if times == 1 and any(user.op == "output" for user in node.users):
            continue  # whose name is the program's
        builder = GraphBuilder(graph, node)
        if times > 1:
            source = builder.call(aten.repeat_interleave.self_int, source, times, -1)
        node.replace_all_uses_with(source)

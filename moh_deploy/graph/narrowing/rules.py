"""Follow entries of an operator's result back to its inputs, one function a kind of operator.

Each takes the value whose entries are wanted, and returns one that holds these alone.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.narrowing.narrowing import (
    Entries,
    Narrowing,
    NarrowRule,
    NotNarrowedError,
    axis_size,
    constant,
    dims_of,
    resized,
    source_axis,
    with_size,
)
from moh_deploy.ops import op_names


def _elementwise(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """Each input that has the axis is narrowed; one that is broadcast along it stays."""
    inputs = [
        operand and _aligned(narrowing, operand, value, axis, kept)
        for operand in _node(value).inputs
    ]
    return narrowing.again(value, axis, kept, inputs)


def _aligned(
    narrowing: Narrowing, given: ir.Value, value: ir.Value, axis: int, kept: Entries
) -> ir.Value:
    """Return an input of an operator that broadcasts from the right, narrowed where it has the
    axis."""
    dims = dims_of(given)
    own = axis - len(dims_of(value)) + len(dims)
    if own < 0 or dims[own] == 1:
        return given
    return narrowing.narrowed(given, own, kept)


def _product(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """Y = A @ B: columns of B, rows of A, or samples of both."""
    left, right = _inputs(value, 2)
    last = len(dims_of(value)) - 1
    if len(dims_of(left)) < 2 or len(dims_of(right)) < 2:
        raise NotNarrowedError(f"'{value.name}' is a product with a vector")
    if axis == last:
        right = narrowing.narrowed(right, len(dims_of(right)) - 1, kept)
    elif axis == last - 1:
        left = narrowing.narrowed(left, len(dims_of(left)) - 2, kept)
    else:
        left, right = (_aligned(narrowing, operand, value, axis, kept) for operand in (left, right))
    return narrowing.again(value, axis, kept, [left, right])


def _gemm(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """Y = A @ B + C, each of A and B perhaps transposed."""
    left, right, *added = _node(value).inputs
    assert left is not None
    assert right is not None
    if axis == 1:
        right = narrowing.narrowed(right, 0 if _number(value, "transB", 0) else 1, kept)
    else:
        left = narrowing.narrowed(left, 1 if _number(value, "transA", 0) else 0, kept)
    biases = [bias and _aligned(narrowing, bias, value, axis, kept) for bias in added]
    return narrowing.again(value, axis, kept, [left, right, *biases])


def _conv(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """Channels of Y [B, O, ...] are rows of W [O, I / groups, ...]; inputs go with their group."""
    x, weight = _inputs(value, 2)
    if axis == 0:
        rest = _node(value).inputs[1:]
        return narrowing.again(value, axis, kept, [narrowing.narrowed(x, 0, kept), *rest])
    if axis > 1:
        raise NotNarrowedError(f"'{value.name}' is a convolution along the axis of its heads")
    groups = _number(value, "group", 1)
    changed = []
    if groups > 1:
        made, read = axis_size(value, 1) // groups, axis_size(x, 1) // groups
        left = sorted({entry // made for entry in kept})
        if len(left) * made != len(kept):
            raise NotNarrowedError(f"'{value.name}' is a convolution whose groups span heads")
        x = narrowing.narrowed(
            x, 1, tuple(number * read + i for number in left for i in range(read))
        )
        changed = [ir.AttrInt64("group", len(left))]
    weights = [weight, *_node(value).inputs[2:]]
    cut = [weight and narrowing.narrowed(weight, 0, kept) for weight in weights]
    return narrowing.again(value, axis, kept, [x, *cut], changed)


def _query_projection(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """Q = X W + bias, as plain operators: with fixed gates there is nothing to skip."""
    if axis != 2:
        raise NotNarrowedError(f"axis {axis} of '{value.name}' has no heads")
    node = _node(value)
    x, weight, _, bias = (*node.inputs, None)[:4]
    assert weight is not None
    return linear(
        narrowing,
        node,
        x,
        narrowing.narrowed(weight, 1, kept),
        None if bias is None else narrowing.narrowed(bias, 0, kept),
        with_size(value, axis, len(kept)),
    )


def linear(
    narrowing: Narrowing,
    node: ir.Node,
    x: ir.Value | None,
    weight: ir.Value,
    bias: ir.Value | None,
    shape: ir.Shape | None,
) -> ir.Value:
    """Add MatMul, and Add where there is a bias, behind a projection of ours."""
    like = [node.outputs[0]]
    product = narrowing.node(node, "MatMul", [x, weight], like=like)
    product.outputs[0].shape = shape
    if bias is None:
        return product.outputs[0]
    added = narrowing.node(product, "Add", [product.outputs[0], bias], like=like)
    added.outputs[0].shape = shape
    return added.outputs[0]


def _transpose(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    (given,) = _inputs(value, 1)
    rank = len(dims_of(value))
    order = _numbers(value, "perm") or list(reversed(range(rank)))
    return narrowing.again(value, axis, kept, [narrowing.narrowed(given, order[axis], kept)])


def _reshape(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    given, shape = _inputs(value, 2)
    own, entries = source_axis(given, value, axis, kept)
    source = narrowing.narrowed(given, own, entries)
    resulting = resized(narrowing, shape, axis, len(kept))
    return narrowing.again(value, axis, kept, [source, resulting])


def _expand(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    given, shape = _inputs(value, 2)
    source = _aligned(narrowing, given, value, axis, kept)
    own = axis - len(dims_of(value)) + axis_size(shape, 0)
    if own >= 0:
        shape = resized(narrowing, shape, own, len(kept))
    return narrowing.again(value, axis, kept, [source, shape])


def _squeeze(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """Axes of size 1 come or go; the others keep their order."""
    given, axes = _inputs(value, 2)
    is_squeezed = _node(value).op_type == "Squeeze"
    rank = len(dims_of(given if is_squeezed else value))
    moved = {number % rank for number in _stored_numbers(axes, value)}
    left = [number for number in range(rank) if number not in moved]
    own = left[axis] if is_squeezed else left.index(axis)
    return narrowing.again(value, axis, kept, [narrowing.narrowed(given, own, kept), axes])


def _split(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """Along its own axis a Split is a choice of entries itself, and is not needed any more."""
    node = _node(value)
    given, *sizes = node.inputs
    assert given is not None
    if _axis_of(value, 0) != axis:
        return narrowing.again(value, axis, kept, [narrowing.narrowed(given, axis, kept), *sizes])
    parts = node.outputs[: node.outputs.index(value)]
    start = sum(axis_size(part, axis) for part in parts)
    return narrowing.narrowed(given, axis, tuple(start + entry for entry in kept))


def _slice(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """As of a Split; along other axes it is written again."""
    given, starts, ends, *rest = _node(value).inputs
    assert given is not None
    rank = len(dims_of(value))
    first = _stored_numbers(starts, value)
    axes = (
        [number % rank for number in _stored_numbers(rest[0], value)]
        if rest and rest[0]
        else range(rank)
    )
    places = [place for place, number in enumerate(axes[: len(first)]) if number == axis]
    if not places:
        source = narrowing.narrowed(given, axis, kept)
        return narrowing.again(value, axis, kept, [source, starts, ends, *rest])
    steps = _stored_numbers(rest[1], value) if len(rest) > 1 and rest[1] else [1] * len(first)
    (at,) = places
    size = axis_size(given, axis)
    entries = range(size)[slice(first[at], _stored_numbers(ends, value)[at], steps[at])]
    if steps[at] < 0:
        raise NotNarrowedError(f"'{value.name}' is in another order than what it is sliced from")
    return narrowing.narrowed(given, axis, tuple(entries[entry] for entry in kept))


def _gather(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    given, indices = _inputs(value, 2)
    # The axis is one of what is read, which may have another rank than the result.
    along, rank = _number(value, "axis", 0) % len(dims_of(given)), len(dims_of(indices))
    if along <= axis < along + rank:
        own = axis - along
        return narrowing.again(value, axis, kept, [given, narrowing.narrowed(indices, own, kept)])
    own = axis if axis < along else axis - rank + 1
    return narrowing.again(value, axis, kept, [narrowing.narrowed(given, own, kept), indices])


def _gather_nd(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """Rows of a table, where what is wanted is entries of each row."""
    given, indices = _inputs(value, 2)
    places = len(dims_of(indices)) - 1
    if axis < places or _number(value, "batch_dims", 0):
        raise NotNarrowedError(f"'{value.name}' has heads among what is looked up")
    own = axis - places + axis_size(indices, places)
    return narrowing.again(value, axis, kept, [narrowing.narrowed(given, own, kept), indices])


def _concat(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    given = [operand for operand in _node(value).inputs if operand is not None]
    if _axis_of(value, 0) % len(dims_of(value)) != axis:
        narrowed = [narrowing.narrowed(value, axis, kept) for value in given]
        return narrowing.again(value, axis, kept, narrowed)
    parts, start = [], 0
    for operand in given:
        stop = start + axis_size(operand, axis)
        own = tuple(entry - start for entry in kept if start <= entry < stop)
        parts += [narrowing.narrowed(operand, axis, own)] if own else []
        start = stop
    return narrowing.again(value, axis, kept, parts)


def _reduction(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    given, *axes = _node(value).inputs
    assert given is not None
    rank = len(dims_of(given))
    listed = _stored_numbers(axes[0], value) if axes and axes[0] else _numbers(value, "axes")
    gone = {number % rank for number in listed} or set(range(rank))
    left = range(rank) if _number(value, "keepdims", 1) else sorted({*range(rank)} - gone)
    own = left[axis]
    if own in gone:
        raise NotNarrowedError(f"'{value.name}' is one number for all heads")
    return narrowing.again(value, axis, kept, [narrowing.narrowed(given, own, kept), *axes])


def _normalized(narrowing: Narrowing, value: ir.Value, axis: int, kept: Entries) -> ir.Value:
    """A norm or softmax over other axes; its scale and bias are of those."""
    given, *rest = _node(value).inputs
    assert given is not None
    rank = len(dims_of(value))
    first = _axis_of(value, -1) % rank
    mixed = {first} if _node(value).op_type in _OVER_ONE_AXIS else {*range(first, rank)}
    if axis in mixed:
        raise NotNarrowedError(f"'{value.name}' is normalised over all heads together")
    return narrowing.again(value, axis, kept, [narrowing.narrowed(given, axis, kept), *rest])


_OVER_ONE_AXIS = ("Softmax", "LogSoftmax", "LpNormalization")

_ELEMENTWISE = (
    *("Abs", "Add", "And", "Cast", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu"),
    *("Greater", "GreaterOrEqual", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max"),
    *("Min", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sin", "Softplus"),
    *("Sqrt", "Sub", "Swish", "Tanh", "Where"),
)

RULES: dict[str, NarrowRule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", *_OVER_ONE_AXIS), _normalized),
    **dict.fromkeys(
        ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "ReduceSumSquare"), _reduction
    ),
    "MatMul": _product,
    "Gemm": _gemm,
    "Conv": _conv,
    op_names.QUERY_PROJECTION: _query_projection,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Expand": _expand,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Concat": _concat,
}


def _node(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _inputs(value: ir.Value, count: int) -> list[ir.Value]:
    """Return the first inputs of the node that makes a value; each has to be there."""
    inputs = [operand for operand in _node(value).inputs[:count] if operand is not None]
    if len(inputs) < count:
        raise NotNarrowedError(f"'{value.name}' is made by {_node(value).op_type} of fewer inputs")
    return inputs


def _stored_numbers(given: ir.Value | None, value: ir.Value) -> list[int]:
    """Return what an input holds that says which entries there are."""
    array = constant(given)
    if array is None:
        raise NotNarrowedError(f"'{value.name}' has entries that are chosen at run time")
    return [int(number) for number in np.atleast_1d(array)]


def _number(value: ir.Value, name: str, default: int) -> int:
    attribute = _node(value).attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _numbers(value: ir.Value, name: str) -> Sequence[int]:
    attribute = _node(value).attributes.get(name)
    return [] if attribute is None else attribute.as_ints()


def _axis_of(value: ir.Value, default: int) -> int:
    """Return the attribute `axis`, counted from the front where the result has as many axes."""
    axis = _number(value, "axis", default)
    return axis if axis >= 0 else axis + len(dims_of(value))

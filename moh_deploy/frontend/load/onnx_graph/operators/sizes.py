"""Compute operators on numbers: the arithmetic of sizes, outside of the traced graph."""

import math
import operator as python
from collections.abc import Callable
from functools import reduce
from typing import Any, cast

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from moh_deploy.frontend.load.onnx_graph.node_call import (
    MOST_NUMBERS,
    ExactNumber,
    Known,
    NodeCall,
    Result,
    is_symbol,
    objects,
    on_numbers,
)
from moh_deploy.frontend.load.onnx_graph.operators.layout import filling, slices


def _known(call: NodeCall, index: int) -> Known:
    value = call.value(index)
    assert isinstance(value, Known)
    return value


def _map(function: Callable[..., ExactNumber], *arrays: np.ndarray) -> np.ndarray:
    """Apply a function to numbers and symbols, broadcast: numpy's own would not take symbols."""
    broadcast = np.broadcast_arrays(*arrays)
    flat = objects(function(*items) for items in zip(*(a.flat for a in broadcast), strict=True))
    return flat.reshape(broadcast[0].shape)


_ARITHMETIC: dict[str, Callable[[Any, Any], ExactNumber]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Max": lambda x, y: cast(ExactNumber, torch.sym_max(x, y)),
    "Min": lambda x, y: cast(ExactNumber, torch.sym_min(x, y)),
}
_COMPARISONS: dict[str, Callable[[Any, Any], ExactNumber]] = {
    "Equal": python.eq,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "And": python.and_,
    "Or": python.or_,
}


@on_numbers(*_ARITHMETIC)
def _arithmetic(call: NodeCall) -> Result | None:
    if len(call.values) != 2:  # Max and Min of one or three
        return None
    x, y = _known(call, 0), _known(call, 1)
    return Known(_map(_ARITHMETIC[call.node.op_type], x.numbers, y.numbers), x.dtype)


@on_numbers(*_COMPARISONS)
def _comparison(call: NodeCall) -> Result | None:
    x, y, function = _known(call, 0), _known(call, 1), _COMPARISONS[call.node.op_type]

    def decided(a: ExactNumber, b: ExactNumber) -> ExactNumber:
        # True or False where the ranges of symbols leave no choice: older exporters compare each
        # size with -1 before they expand.
        answer = function(a, b)
        if not isinstance(answer, torch.SymBool):
            return answer
        no = torch.sym_not(answer)
        return statically_known_true(answer) or (False if statically_known_true(no) else answer)

    return Known(_map(decided, x.numbers, y.numbers), torch.bool)


@on_numbers("Div")
def _div(call: NodeCall) -> Result | None:
    x, y = _known(call, 0), _known(call, 1)

    def divided(a: Any, b: Any) -> ExactNumber:
        if x.dtype.is_floating_point:
            return cast(ExactNumber, a / b)
        # ONNX rounds toward zero. Sizes are not negative, and symbols are not asked whether they
        # are.
        if isinstance(a, int) and isinstance(b, int) and b:
            return int(math.copysign(abs(a) // abs(b), a * b))
        return cast(ExactNumber, a // b)

    return Known(_map(divided, x.numbers, y.numbers), x.dtype)


@on_numbers("Mod")
def _mod(call: NodeCall) -> Result | None:
    x, y = _known(call, 0), _known(call, 1)
    if call.attribute("fmod", 0) or x.dtype.is_floating_point:
        return None
    return Known(_map(python.mod, x.numbers, y.numbers), x.dtype)


@on_numbers("Abs", "Neg", "Floor", "Ceil", "Not", "Sqrt")
def _unary(call: NodeCall) -> Result | None:
    functions: dict[str, Callable[[Any], ExactNumber]] = {
        "Abs": abs,
        "Neg": python.neg,
        "Floor": math.floor,
        "Ceil": math.ceil,
        "Not": torch.sym_not,
        "Sqrt": torch.sym_sqrt if hasattr(torch, "sym_sqrt") else math.sqrt,
    }
    x = _known(call, 0)
    return Known(_map(functions[call.node.op_type], x.numbers), x.dtype)


@on_numbers("Where")
def _where(call: NodeCall) -> Result | None:
    condition, chosen, other = (_known(call, index) for index in range(3))
    # Deciding on a symbol would fix the sizes that it holds for.
    if any(map(is_symbol, condition.flat())):
        return None
    found = _map(lambda c, x, y: x if c else y, condition.numbers, chosen.numbers, other.numbers)
    return Known(found, chosen.dtype)


@on_numbers("Identity")
def _identity(call: NodeCall) -> Result | None:
    return _known(call, 0)


@on_numbers("Cast")
def _cast(call: NodeCall) -> Result | None:
    x, dtype = _known(call, 0), call.dtype("to")
    if x.stored is not None and x.dtype != dtype:
        return None  # a constant keeps its exact rounding
    kinds = {kind.is_floating_point for kind in (x.dtype, dtype)}
    if dtype == torch.bool or x.dtype == torch.bool:
        return None
    if kinds == {True, False}:
        to = torch.sym_float if dtype.is_floating_point else torch.sym_int
        return Known(_map(to, x.numbers), dtype)
    return Known(x.numbers, dtype)


@on_numbers("Concat")
def _concat(call: NodeCall) -> Result | None:
    known = [_known(call, index) for index in range(len(call.values))]
    joined = np.concatenate([value.numbers for value in known], axis=call.required("axis", int))
    return Known(joined, known[0].dtype)


@on_numbers("Gather")
def _gather(call: NodeCall) -> Result | None:
    x, index = _known(call, 0), _known(call, 1)
    if any(map(is_symbol, index.flat())):
        return None
    taken = np.take(x.numbers, index.numbers.astype(np.int64), axis=call.attribute("axis", 0))
    return Known(np.asarray(taken, dtype=object).reshape(np.shape(taken)), x.dtype)


@on_numbers("Slice")
def _slice(call: NodeCall) -> Result | None:
    x = _known(call, 0)
    along = slices(call, x.numbers.ndim)
    if any(is_symbol(item) for cut in along.values() for item in (cut.start, cut.stop)):
        return None
    return Known(
        x.numbers[tuple(along.get(a, slice(None)) for a in range(x.numbers.ndim))], x.dtype
    )


@on_numbers("Reshape")
def _reshape(call: NodeCall) -> Result | None:
    x = _known(call, 0)
    shape = [int(cast(int, number)) for number in call.numbers(1, "shape")]
    if 0 in shape:
        return None
    return Known(x.numbers.reshape(shape), x.dtype)


@on_numbers("Unsqueeze")
def _unsqueeze(call: NodeCall) -> Result | None:
    x, axes = _known(call, 0), call.axes(1) or []
    return Known(np.expand_dims(x.numbers, tuple(axes)), x.dtype)


@on_numbers("Squeeze")
def _squeeze(call: NodeCall) -> Result | None:
    x, axes = _known(call, 0), call.axes(1)
    squeezed = x.numbers.squeeze() if axes is None else x.numbers.squeeze(tuple(axes))
    return Known(np.asarray(squeezed, dtype=object), x.dtype)


@on_numbers("Split")
def _split(call: NodeCall) -> Result | None:
    x = _known(call, 0)
    axis, count = call.attribute("axis", 0), len(call.node.outputs)
    if not call.has(1) and x.shape[axis] % count:
        return None
    lengths = call.sizes(1, "split") if call.has(1) else [x.shape[axis] // count] * count
    places = np.cumsum([int(length) for length in lengths])[:-1]
    return [Known(part, x.dtype) for part in np.split(x.numbers, places, axis=axis)]


@on_numbers("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(call: NodeCall) -> Result | None:
    x = _known(call, 0)
    functions: dict[str, Callable[[Any, Any], ExactNumber]] = {
        "ReduceProd": python.mul,
        "ReduceSum": python.add,
        "ReduceMax": _ARITHMETIC["Max"],
        "ReduceMin": _ARITHMETIC["Min"],
    }
    if x.numbers.ndim != 1 or not x.numbers.size:
        return None
    found = objects([reduce(functions[call.node.op_type], x.flat())])
    return Known(found if call.attribute("keepdims", 1) else found.reshape(()), x.dtype)


@on_numbers("ConstantOfShape")
def _constant_of_shape(call: NodeCall) -> Result | None:
    shape = call.sizes(0, "shape")
    if any(map(is_symbol, shape)) or math.prod(shape) > MOST_NUMBERS:
        return None
    number, dtype = filling(call)
    array = objects([number] * math.prod(shape))
    return Known(array.reshape(shape), dtype)


@on_numbers("Expand")
def _expand(call: NodeCall) -> Result | None:
    x, shape = _known(call, 0), call.sizes(1, "shape")
    if any(map(is_symbol, shape)):
        return None
    wide = np.broadcast_shapes(x.shape, tuple(shape))
    if math.prod(wide) > MOST_NUMBERS:
        return None
    return Known(np.broadcast_to(x.numbers, wide), x.dtype)


@on_numbers("Range")
def _range(call: NodeCall) -> Result | None:
    start, stop, step = (call.numbers(index, "bounds")[0] for index in range(3))
    whole = all(isinstance(number, int) for number in (start, stop, step))
    if not whole or len(found := range(*map(int, (start, stop, step)))) > MOST_NUMBERS:
        return None
    return Known.of(list(found), _known(call, 0).dtype)


@on_numbers("Size")
def _size(call: NodeCall) -> Result | None:
    return Known.of([_known(call, 0).numbers.size])


@on_numbers("Shape")
def _shape(call: NodeCall) -> Result | None:
    axes = _known(call, 0).shape
    return Known.of(axes[call.attribute("start", 0) : call.attribute("end", len(axes))])

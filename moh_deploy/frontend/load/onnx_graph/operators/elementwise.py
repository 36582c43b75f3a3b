"""Operators that compute each element of its own, and their broadcasts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import TypeAlias, cast

import torch
from torch.nn import functional

from moh_deploy.frontend.load.onnx_graph.call import (
    MICROSOFT,
    ExactNumber,
    Known,
    NodeCall,
    NodeValue,
    Result,
    as_tensor,
    operator,
)

BroadcastOperand: TypeAlias = "torch.Tensor | ExactNumber"

_UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,  # half to even, in both
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _unary(call: NodeCall, function: Callable[[torch.Tensor], torch.Tensor]) -> Result:
    return function(call.tensor(0))


for _name, _function in _UNARY.items():
    operator(_name)(partial(_unary, function=_function))


def operands(call: NodeCall) -> tuple[BroadcastOperand, BroadcastOperand]:
    """Return two inputs that are broadcast; a constant scalar beside a tensor as a number.

    Recognition and runtimes know `x * 0.125` better than a product with a stored tensor.
    """
    first, second = call.value(0), call.value(1)
    if isinstance(first, torch.Tensor):
        return first, _number_or_tensor(second, first)
    if isinstance(second, torch.Tensor):
        return _number_or_tensor(first, second), second
    return as_tensor(first), as_tensor(second)


def _number_or_tensor(value: NodeValue, other: torch.Tensor) -> BroadcastOperand:
    # Of the same dtype in ONNX, so that a number does not change what the result is.
    if isinstance(value, Known) and value.numbers.size == 1 and len(value.shape) <= other.ndim:
        return value.flat()[0]
    return as_tensor(value)


def _divide(x: BroadcastOperand, y: BroadcastOperand) -> torch.Tensor:
    kept = x if isinstance(x, torch.Tensor) else y
    assert isinstance(kept, torch.Tensor)
    if kept.is_floating_point():
        return x / y  # type: ignore[return-value]
    first = x if isinstance(x, torch.Tensor) else torch.scalar_tensor(x, dtype=kept.dtype)
    return torch.div(first, y, rounding_mode="trunc")


def _flipped(compare: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A comparison for a number on the left, which torch's functions do not take."""

    def function(x: BroadcastOperand, y: BroadcastOperand) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            return compare(x, y)
        assert isinstance(y, torch.Tensor)
        return compare(torch.scalar_tensor(x, dtype=y.dtype), y)

    return function


_BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "Div": _divide,
    "And": _flipped(torch.logical_and),
    "Or": _flipped(torch.logical_or),
    "Xor": _flipped(torch.logical_xor),
    "Equal": _flipped(torch.eq),
    "Greater": _flipped(torch.gt),
    "GreaterOrEqual": _flipped(torch.ge),
    "Less": _flipped(torch.lt),
    "LessOrEqual": _flipped(torch.le),
    "BitwiseAnd": _flipped(torch.bitwise_and),
    "BitwiseOr": _flipped(torch.bitwise_or),
    "BitwiseXor": _flipped(torch.bitwise_xor),
}


def _binary(call: NodeCall, function: Callable[..., torch.Tensor]) -> Result:
    return function(*operands(call))


for _name, _two in _BINARY.items():
    # And, Or, Xor take bool alone, for which torch has tensors on both sides.
    operator(_name)(partial(_binary, function=_two))


@operator("Pow")
def _pow(call: NodeCall) -> Result:
    base = call.tensor(0)
    exponent = _number_or_tensor(call.value(1), base)
    # The result has the dtype of the base, whatever that of the exponent.
    return torch.pow(base, exponent).to(base.dtype)


@operator("Mod")
def _mod(call: NodeCall) -> Result:
    x, y = call.tensor(0), call.tensor(1)
    return torch.fmod(x, y) if call.attribute("fmod", 0) else torch.remainder(x, y)


@operator("BitShift")
def _bit_shift(call: NodeCall) -> Result:
    x, y = call.tensor(0), call.tensor(1)
    left = call.required("direction", str) == "LEFT"
    return torch.bitwise_left_shift(x, y) if left else torch.bitwise_right_shift(x, y)


@operator("Max")
def _max(call: NodeCall) -> Result:
    return reduce(torch.maximum, call.tensors())


@operator("Min")
def _min(call: NodeCall) -> Result:
    return reduce(torch.minimum, call.tensors())


@operator("Sum")
def _sum(call: NodeCall) -> Result:
    return reduce(torch.add, call.tensors())


@operator("Mean")
def _mean(call: NodeCall) -> Result:
    return reduce(torch.add, call.tensors()) / len(call.tensors())


@operator("Clip")
def _clip(call: NodeCall) -> Result:
    x = call.tensor(0)
    bounds = [_bound(call, index, x) for index in (1, 2)]
    if all(bound is None for bound in bounds):
        return x
    if any(isinstance(bound, torch.Tensor) for bound in bounds):
        return torch.clamp(x, *(call.optional(index) for index in (1, 2)))
    return torch.clamp(x, *bounds)  # type: ignore[arg-type]


def _bound(call: NodeCall, index: int, x: torch.Tensor) -> BroadcastOperand | None:
    return _number_or_tensor(call.value(index), x) if call.has(index) else None


@operator("Where")
def _where(call: NodeCall) -> Result:
    condition = call.tensor(0)
    chosen, other = (_branch(call.value(index)) for index in (1, 2))
    if not isinstance(chosen, torch.Tensor) and not isinstance(other, torch.Tensor):
        chosen = call.tensor(1)
    if not isinstance(chosen, torch.Tensor) and chosen == 0:
        return torch.masked_fill(cast(torch.Tensor, other), condition, chosen)
    return torch.where(condition, chosen, other)


def _branch(value: NodeValue) -> BroadcastOperand:
    """A constant scalar as a number: `masked_fill` is written so in most exports."""
    if isinstance(value, Known) and value.shape == ():
        return value.flat()[0]
    return as_tensor(value)


@operator("Cast")
def _cast(call: NodeCall) -> Result:
    return call.tensor(0).to(call.dtype("to"))


@operator("CastLike")
def _cast_like(call: NodeCall) -> Result:
    return call.tensor(0).to(call.tensor(1).dtype)


@operator("Identity", "Dropout")
def _identity(call: NodeCall) -> Result:
    if call.has(2) and any(call.numbers(2, "training_mode")):
        raise call.refused("drops values at random, as in training")
    value = call.value(0)
    if call.node.op_type == "Identity" or len(call.node.outputs) < 2:
        return value
    return value, torch.ones_like(as_tensor(value), dtype=torch.bool)


@operator("IsInf")
def _is_inf(call: NodeCall) -> Result:
    x = call.tensor(0)
    positive, negative = call.attribute("detect_positive", 1), call.attribute("detect_negative", 1)
    if positive and negative:
        return torch.isinf(x)
    return torch.eq(x, torch.inf if positive else -torch.inf) & bool(positive or negative)


@operator("Gelu")
def _gelu(call: NodeCall) -> Result:
    return functional.gelu(call.tensor(0), approximate=call.attribute("approximate", "none"))


@operator("Gelu", domain=MICROSOFT)
def _exact_gelu(call: NodeCall) -> Result:
    return functional.gelu(call.tensor(0))


@operator("BiasGelu", domain=MICROSOFT)
def _bias_gelu(call: NodeCall) -> Result:
    return functional.gelu(call.tensor(0) + call.tensor(1))


@operator("FastGelu", domain=MICROSOFT)
def _fast_gelu(call: NodeCall) -> Result:
    bias = call.optional(1)
    x = call.tensor(0) if bias is None else call.tensor(0) + bias
    return functional.gelu(x, approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT)
def _quick_gelu(call: NodeCall) -> Result:
    x = call.tensor(0)
    return x * torch.sigmoid(x * call.attribute("alpha", 1.702))


@operator("Swish")
def _swish(call: NodeCall) -> Result:
    x, alpha = call.tensor(0), call.attribute("alpha", 1.0)
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


@operator("LeakyRelu")
def _leaky_relu(call: NodeCall) -> Result:
    return functional.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01))


@operator("PRelu")
def _prelu(call: NodeCall) -> Result:
    x, slope = call.tensor(0), call.tensor(1)
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def _elu(call: NodeCall) -> Result:
    return functional.elu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Celu")
def _celu(call: NodeCall) -> Result:
    return functional.celu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Selu")
def _selu(call: NodeCall) -> Result:
    x = call.tensor(0)
    alpha = call.attribute("alpha", 1.67326319217681884765625)
    gamma = call.attribute("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@operator("ThresholdedRelu")
def _thresholded_relu(call: NodeCall) -> Result:
    x = call.tensor(0)
    return torch.where(x > call.attribute("alpha", 1.0), x, 0)


@operator("HardSigmoid")
def _hard_sigmoid(call: NodeCall) -> Result:
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    return torch.clamp(call.tensor(0) * alpha + beta, 0, 1)

"""Operators that compute each element of its own, and their broadcasts."""

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias, cast

import torch
from torch.nn import functional

from moh_deploy.frontend.load.onnx_graph import node_call

BroadcastOperand: TypeAlias = "torch.Tensor | node_call.ExactNumber"

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


@node_call.operator(*_UNARY)
def _unary(call: node_call.NodeCall) -> node_call.Result:
    return _UNARY[call.node.op_type](call.tensor(0))


def _number_or_tensor(value: node_call.NodeValue, other: torch.Tensor) -> BroadcastOperand:
    # Of the same dtype in ONNX, so that a number does not change what the result is.
    if (
        isinstance(value, node_call.Known)
        and value.numbers.size == 1
        and len(value.shape) <= other.ndim
    ):
        return value.flat()[0]
    return node_call.as_tensor(value)


def _divide(x: BroadcastOperand, y: BroadcastOperand) -> torch.Tensor:
    kept = x if isinstance(x, torch.Tensor) else y
    assert isinstance(kept, torch.Tensor)
    if kept.is_floating_point():
        return x / y  # type: ignore[return-value]
    first = x if isinstance(x, torch.Tensor) else torch.scalar_tensor(x, dtype=kept.dtype)
    return torch.div(first, y, rounding_mode="trunc")


# And, Or, Xor take bool alone.
_COMPARISONS: dict[str, Callable[..., torch.Tensor]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
_ARITHMETIC: dict[str, Callable[..., torch.Tensor]] = {
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "Div": _divide,
}


@node_call.operator(*_ARITHMETIC, *_COMPARISONS)
def _binary(call: node_call.NodeCall) -> node_call.Result:
    """Two inputs that are broadcast; a constant scalar beside a tensor is a number.

    Recognition and runtimes know `x * 0.125` better than a product with a stored tensor.
    """
    first, second, name = call.value(0), call.value(1), call.node.op_type
    x: BroadcastOperand = node_call.as_tensor(first)
    y: BroadcastOperand = node_call.as_tensor(second)
    if isinstance(first, torch.Tensor):
        y = _number_or_tensor(second, first)
    elif isinstance(second, torch.Tensor):
        x = _number_or_tensor(first, second)
    if name in _ARITHMETIC:
        return _ARITHMETIC[name](x, y)
    if not isinstance(x, torch.Tensor):  # torch's functions take no number on the left
        x = torch.scalar_tensor(x, dtype=cast(torch.Tensor, y).dtype)
    return _COMPARISONS[name](x, y)


@node_call.operator("Pow")
def _pow(call: node_call.NodeCall) -> node_call.Result:
    base = call.tensor(0)
    exponent = _number_or_tensor(call.value(1), base)
    # The result has the dtype of the base, whatever that of the exponent.
    return torch.pow(base, exponent).to(base.dtype)


@node_call.operator("Clip")
def _clip(call: node_call.NodeCall) -> node_call.Result:
    x = call.tensor(0)
    bounds: list[Any] = [
        _number_or_tensor(call.value(i), x) if call.has(i) else None for i in (1, 2)
    ]
    if all(bound is None for bound in bounds):
        return x
    if any(isinstance(bound, torch.Tensor) for bound in bounds):
        return torch.clamp(x, *(call.optional(index) for index in (1, 2)))
    return torch.clamp(x, *bounds)


@node_call.operator("Where")
def _where(call: node_call.NodeCall) -> node_call.Result:
    condition = call.tensor(0)

    def branch(value: node_call.NodeValue) -> BroadcastOperand:
        # A constant scalar as a number: `masked_fill` is written so in most exports.
        if isinstance(value, node_call.Known) and value.shape == ():
            return value.flat()[0]
        return node_call.as_tensor(value)

    chosen, other = branch(call.value(1)), branch(call.value(2))
    if not isinstance(chosen, torch.Tensor) and not isinstance(other, torch.Tensor):
        chosen = call.tensor(1)
    if not isinstance(chosen, torch.Tensor) and chosen == 0:
        return torch.masked_fill(cast(torch.Tensor, other), condition, chosen)
    return torch.where(condition, chosen, other)


@node_call.operator("Identity", "Dropout")
def _identity(call: node_call.NodeCall) -> node_call.Result:
    if call.has(2) and any(call.numbers(2, "training_mode")):
        raise call.refused("drops values at random, as in training")
    value = call.value(0)
    if call.node.op_type == "Identity" or len(call.node.outputs) < 2:
        return value
    return value, torch.ones_like(node_call.as_tensor(value), dtype=torch.bool)


@node_call.operator("IsInf")
def _is_inf(call: node_call.NodeCall) -> node_call.Result:
    x = call.tensor(0)
    positive, negative = call.attribute("detect_positive", 1), call.attribute("detect_negative", 1)
    if positive and negative:
        return torch.isinf(x)
    return torch.eq(x, torch.inf if positive else -torch.inf) & bool(positive or negative)


@node_call.operator("BitShift")
def _bit_shift(call: node_call.NodeCall) -> node_call.Result:
    x, y = call.tensor(0), call.tensor(1)
    left = call.required("direction", str) == "LEFT"
    return torch.bitwise_left_shift(x, y) if left else torch.bitwise_right_shift(x, y)


@node_call.operator("Swish")
def _swish(call: node_call.NodeCall) -> node_call.Result:
    x, alpha = call.tensor(0), call.attribute("alpha", 1.0)
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


@node_call.operator("Selu")
def _selu(call: node_call.NodeCall) -> node_call.Result:
    x = call.tensor(0)
    alpha = call.attribute("alpha", 1.67326319217681884765625)
    gamma = call.attribute("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@node_call.operator("FastGelu", domain=node_call.MICROSOFT)
def _fast_gelu(call: node_call.NodeCall) -> node_call.Result:
    bias = call.optional(1)
    x = call.tensor(0) if bias is None else call.tensor(0) + bias
    return functional.gelu(x, approximate="tanh")


def _alpha(call: node_call.NodeCall, default: float) -> tuple[torch.Tensor, float]:
    return call.tensor(0), call.attribute("alpha", default)


# Formulas of one line, with the defaults of their attributes.
_FORMULAS: dict[str, Callable[[node_call.NodeCall], torch.Tensor]] = {
    "Max": lambda call: reduce(torch.maximum, call.tensors()),
    "Min": lambda call: reduce(torch.minimum, call.tensors()),
    "Sum": lambda call: reduce(torch.add, call.tensors()),
    "Mean": lambda call: reduce(torch.add, call.tensors()) / len(call.tensors()),
    "Mod": lambda call: (torch.fmod if call.attribute("fmod", 0) else torch.remainder)(
        call.tensor(0), call.tensor(1)
    ),
    "Cast": lambda call: call.tensor(0).to(call.dtype("to")),
    "CastLike": lambda call: call.tensor(0).to(call.tensor(1).dtype),
    "Gelu": lambda call: functional.gelu(
        call.tensor(0), approximate=call.attribute("approximate", "none")
    ),
    "LeakyRelu": lambda call: functional.leaky_relu(*_alpha(call, 0.01)),
    "Elu": lambda call: functional.elu(*_alpha(call, 1.0)),
    "Celu": lambda call: functional.celu(*_alpha(call, 1.0)),
    "ThresholdedRelu": lambda call: torch.where(
        call.tensor(0) > call.attribute("alpha", 1.0), call.tensor(0), 0
    ),
    "PRelu": lambda call: torch.where(
        call.tensor(0) < 0, call.tensor(0) * call.tensor(1), call.tensor(0)
    ),
    "HardSigmoid": lambda call: torch.clamp(
        call.tensor(0) * call.attribute("alpha", 0.2) + call.attribute("beta", 0.5), 0, 1
    ),
}
_MICROSOFTS: dict[str, Callable[[node_call.NodeCall], torch.Tensor]] = {
    "Gelu": lambda call: functional.gelu(call.tensor(0)),
    "BiasGelu": lambda call: functional.gelu(call.tensor(0) + call.tensor(1)),
    "QuickGelu": lambda call: (
        call.tensor(0) * torch.sigmoid(call.tensor(0) * call.attribute("alpha", 1.702))
    ),
}
for _name, _formula in _FORMULAS.items():
    node_call.operator(_name)(_formula)
for _name, _formula in _MICROSOFTS.items():
    node_call.operator(_name, domain=node_call.MICROSOFT)(_formula)

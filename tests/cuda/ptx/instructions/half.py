"""Arithmetic of float16 and bfloat16, alone or in pairs: computed exactly, rounded once."""

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.element_types import F16, F64, U16, U32, Value
from tests.cuda.ptx.instructions.registry import Decoding, Step, elementwise
from tests.cuda.ptx.instructions.rounding import (
    bfloat16_to_float32,
    float64_to_bfloat16,
    sum_to_odd,
)

TYPES = ("f16", "f16x2", "bf16", "bf16x2")
Function = Callable[..., Value]

# Sums and products of two numbers of 11 bits are exact in float64, or rounded so late that it does
# not show.
BINARY: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": np.fmin,
    "max": np.fmax,
}
BINARY_NAN: dict[str, Function] = {"min": np.minimum, "max": np.maximum}
UNARY: dict[str, Function] = {"neg": np.negative, "abs": np.abs}


def binary(decoding: Decoding) -> Step:
    name = decoding.instruction.name
    if name in ("min", "max"):
        options = decoding.options("ftz", "NaN")
        return _step(decoding, (BINARY_NAN if "NaN" in options else BINARY)[name], 2)
    decoding.options("rn")
    return _step(decoding, BINARY[name], 2)


def unary(decoding: Decoding) -> Step:
    decoding.options()
    return _step(decoding, UNARY[decoding.instruction.name], 1)


def fused(decoding: Decoding) -> Step:
    options = decoding.options("rn", "relu")

    def function(a: Value, b: Value, c: Value) -> Value:
        total = sum_to_odd(a * b, c)
        return np.maximum(total, 0) if "relu" in options else total

    return _step(decoding, function, 3)


def numbers(bits: Value, type_: str) -> Value:
    """Return the float64 numbers of bits: [n], or [n, 2] of pairs."""
    if type_.endswith("x2"):
        bits = np.stack([bits & np.uint32(0xFFFF), bits >> np.uint32(16)], -1).astype(U16)
    if type_.startswith("bf16"):
        return bfloat16_to_float32(bits).astype(F64)
    return bits.view(F16).astype(F64)


def bits_of(values: Value, type_: str) -> Value:
    """Round float64 numbers to a type, and return their bits."""
    is_bfloat = type_.startswith("bf16")
    bits = float64_to_bfloat16(values) if is_bfloat else _to_float16(values)
    if type_.endswith("x2"):
        wide = bits.astype(U32)
        return wide[..., 0] | (wide[..., 1] << np.uint32(16))
    return bits


def _to_float16(values: Value) -> Value:
    return np.where(np.isnan(values), U16.type(0x7FFF), values.astype(F16).view(U16))


def _step(decoding: Decoding, function: Function, count: int) -> Step:
    type_ = decoding.type
    dtype = U32 if type_.endswith("x2") else U16

    def on_bits(*values: Value) -> Value:
        return bits_of(function(*[numbers(value, type_) for value in values]), type_)

    return elementwise(decoding, on_bits, (dtype,) * count, dtype)

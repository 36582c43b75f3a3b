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


# Sums and products of two numbers of 11 bits are exact in float64, or rounded so late that it does
# not show.
def add(decoding: Decoding) -> Step:
    decoding.options("rn")
    return _step(decoding, np.add, 2)


def fused(decoding: Decoding) -> Step:
    decoding.options("rn")
    return _step(decoding, lambda a, b, c: sum_to_odd(a * b, c), 3)


def numbers(bits: Value, type_: str) -> Value:
    """Return the float64 numbers of bits: [n], or [n, 2] of pairs."""
    if type_.endswith("x2"):
        bits = np.stack([bits & np.uint32(0xFFFF), bits >> np.uint32(16)], -1).astype(U16)
    if type_.startswith("bf16"):
        return bfloat16_to_float32(bits).astype(F64)
    return bits.view(F16).astype(F64)


def bits_of(values: Value, type_: str) -> Value:
    """Round float64 numbers to a type, and return their bits."""
    if type_.startswith("bf16"):
        bits = float64_to_bfloat16(values)
    else:
        bits = np.where(np.isnan(values), U16.type(0x7FFF), values.astype(F16).view(U16))
    if type_.endswith("x2"):
        wide = bits.astype(U32)
        return wide[..., 0] | (wide[..., 1] << np.uint32(16))
    return bits


def _step(decoding: Decoding, function: Callable[..., Value], count: int) -> Step:
    type_ = decoding.type
    dtype = U32 if type_.endswith("x2") else U16

    def on_bits(*values: Value) -> Value:
        return bits_of(function(*[numbers(value, type_) for value in values]), type_)

    return elementwise(decoding, on_bits, (dtype,) * count, dtype)

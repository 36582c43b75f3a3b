"""Rounding of float64 to narrower types, and sums that are rounded once.

A sum of float64 numbers is rounded to odd: to the neighbour whose last bit is 1, unless it is
exact. Rounding that to a type of at least two bits less is then as if the sum had been exact.
"""

import numpy as np

from tests.cuda.ptx.element_types import F32, F64, Value

_HALF_OF_FLOAT32 = np.uint64(1 << 28)
_BELOW_FLOAT32 = np.uint64((1 << 29) - 1)
_NORMAL_FLOAT32 = 2.0**-126
_NAN_BFLOAT16 = np.uint32(0x7FFF)


def fused_multiply_add(a: Value, b: Value, c: Value) -> Value:
    """Return a * b + c of float32, rounded once.

    The product is exact in float64. The sum is rounded there, and that harms only where it then
    lies halfway between two float32.
    """
    product = np.multiply(a, b, dtype=F64)
    total = np.add(product, c, dtype=F64)
    bits = total.view(np.uint64) & _BELOW_FLOAT32
    doubtful = (bits == _HALF_OF_FLOAT32) | (np.abs(total) < _NORMAL_FLOAT32)
    if doubtful.any():
        total = sum_to_odd(product, c.astype(np.float64))
    return total.astype(np.float32)


def towards_zero(exact: Value) -> Value:
    """Return float64 numbers as float32, the rest cut off."""
    nearest = exact.astype(F32)
    beyond = np.abs(nearest.astype(F64)) > np.abs(exact)
    return np.where(beyond, np.nextafter(nearest, F32.type(0)), nearest)


def fused_rounded_down(a: Value, b: Value, c: Value) -> Value:
    """Return a * b + c of float32, rounded towards minus infinity."""
    exact = sum_to_odd(np.multiply(a, b, dtype=F64), c.astype(F64))
    nearest = exact.astype(F32)
    return np.where(nearest > exact, np.nextafter(nearest, F32.type(-np.inf)), nearest)


def sum_to_odd(a: Value, b: Value) -> Value:
    """Return a + b of float64, rounded to odd."""
    total = a + b
    of_b = total - a
    error = (a - (total - of_b)) + (b - of_b)
    is_even = (total.view(np.uint64) & np.uint64(1)) == 0
    step = np.isfinite(total) & (error != 0) & is_even
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where(step, np.nextafter(total, towards), total)


def float32_to_bfloat16(value: Value) -> Value:
    """Return the bits of the nearest bfloat16, ties to even; NaN becomes 0x7fff."""
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), _NAN_BFLOAT16, rounded).astype(np.uint16)


def float64_to_bfloat16(value: Value) -> Value:
    """Return the bits of the nearest bfloat16; through float32, rounded to odd."""
    narrow = value.astype(np.float32)
    is_even = (narrow.view(np.uint32) & np.uint32(1)) == 0
    error = value - narrow.astype(np.float64)
    step = np.isfinite(value) & (error != 0) & is_even
    towards = np.where(error > 0, np.float32(np.inf), np.float32(-np.inf))
    return float32_to_bfloat16(np.where(step, np.nextafter(narrow, towards), narrow))


def bfloat16_to_float32(bits: Value) -> Value:
    """Return the numbers of bfloat16's bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(F32)


def float32_to_tf32(value: Value) -> Value:
    """Return the bits of the nearest number of 11 significant bits; ties away from zero."""
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(
        np.isnan(value), np.uint32(0x7FFFFFFF), np.where(np.isinf(value), bits, rounded)
    )


def flush(value: Value) -> Value:
    """Replace float32 numbers below the normal ones by 0 of the same sign."""
    return np.where(np.abs(value) < np.float32(_NORMAL_FLOAT32), value * np.float32(0), value)

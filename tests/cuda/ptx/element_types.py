"""PTX's types and numpy's."""

from typing import Any

import numpy as np

Value = Any
"""What a register holds: an array with an element a thread, or a numpy scalar if all are equal.

Values are never changed in place: two registers may hold the same array.
"""

BOOL = np.dtype(np.bool_)
U8, U16, U32, U64 = (np.dtype(f"u{size}") for size in (1, 2, 4, 8))
S8, S16, S32, S64 = (np.dtype(f"i{size}") for size in (1, 2, 4, 8))
F16, F32, F64 = (np.dtype(f"f{size}") for size in (2, 4, 8))

# Pairs of 16-bit numbers and bfloat16 are bits to numpy: half.py computes with them.
DTYPES = {
    "pred": BOOL,
    **{f"b{8 * t.itemsize}": t for t in (U8, U16, U32, U64)},
    **{f"u{8 * t.itemsize}": t for t in (U8, U16, U32, U64)},
    **{f"s{8 * t.itemsize}": t for t in (S8, S16, S32, S64)},
    **{f"f{8 * t.itemsize}": t for t in (F16, F32)},
    "bf16": U16,
    "f16x2": U32,
    "bf16x2": U32,
    "tf32": U32,
}

UNSIGNED = {t.itemsize: t for t in (U8, U16, U32, U64)}
SIGNED = {t.itemsize: t for t in (S8, S16, S32, S64)}


def reinterpret(value: Value, dtype: np.dtype) -> Value:
    """Return the same bits as another type, or the low ones if that is smaller."""
    size = value.dtype.itemsize
    if size == dtype.itemsize:
        return value.view(dtype)
    if size < dtype.itemsize:
        raise TypeError(f"{size} bytes cannot be read as {dtype}.")
    return value.view(UNSIGNED[size]).astype(UNSIGNED[dtype.itemsize]).view(dtype)


def widened(dtype: np.dtype, size: int) -> np.dtype:
    """Return the type that a value of `dtype` has in a register of `size` bytes."""
    if dtype.itemsize == size:
        return dtype
    return (SIGNED if dtype.kind == "i" else UNSIGNED)[size]

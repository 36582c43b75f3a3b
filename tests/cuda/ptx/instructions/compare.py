"""Comparison and selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.element_types import BOOL, DTYPES, F16, S32, Value
from tests.cuda.ptx.instructions.integer import LOGIC
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes, elementwise
from tests.cuda.ptx.instructions.rounding import bfloat16_to_float32
from tests.cuda.ptx.operands import Mask, writer
from tests.cuda.ptx.syntax import Pair

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Machine

Comparison = Callable[[Value, Value], Value]

COMPARISONS: dict[str, Comparison] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


@decodes("setp")
def set_predicate(decoding: Decoding) -> Step:
    compare, dtype = _comparison(decoding), _dtype(decoding)
    combine = next((LOGIC[m] for m in decoding.instruction.modifiers if m in LOGIC), None)
    target = decoding.operands[0]
    if isinstance(target, Pair):
        return _set_both(decoding, target, compare, dtype, combine)
    sources = (dtype, dtype) if combine is None else (dtype, dtype, BOOL)
    return elementwise(decoding, _combined(compare, combine), sources, BOOL)


def _combined(compare: Comparison, combine: Comparison | None) -> Callable[..., Value]:
    if combine is None:
        return compare
    return lambda a, b, c: combine(compare(a, b), c)


def _set_both(
    decoding: Decoding,
    target: Pair,
    compare: Comparison,
    dtype: np.dtype,
    combine: Comparison | None,
) -> Step:
    """The second destination is the opposite of the comparison."""
    first, second = writer(target.first, BOOL), writer(target.second, BOOL)
    a, b = decoding.read(1, dtype), decoding.read(2, dtype)
    c = decoding.read(3, BOOL) if combine is not None else None

    def step(machine: Machine, mask: Mask) -> None:
        registers = machine.registers
        holds = compare(a(registers), b(registers))
        fails = ~holds
        if c is not None and combine is not None:
            holds, fails = combine(holds, c(registers)), combine(fails, c(registers))
        first(machine, holds, mask)
        second(machine, fails, mask)

    return step


@decodes("set")
def set_value(decoding: Decoding) -> Step:
    """All ones, or 1.0 for f32, where the comparison holds."""
    result = decoding.instruction.modifiers[-2]
    if result not in ("u32", "s32", "f32"):
        raise decoding.unsupported()
    compare, dtype = _comparison(decoding, extra=(result,)), _dtype(decoding)
    true = np.float32(1) if result == "f32" else np.uint32(0xFFFFFFFF)
    return elementwise(
        decoding,
        lambda a, b: np.where(compare(a, b), true, true.dtype.type(0)),
        (dtype, dtype),
        true.dtype,
    )


@decodes("selp")
def select(decoding: Decoding) -> Step:
    decoding.options()
    dtype = decoding.dtype
    return elementwise(decoding, lambda a, b, p: np.where(p, a, b), (dtype, dtype, BOOL), dtype)


@decodes("slct")
def select_by_sign(decoding: Decoding) -> Step:
    """The first if c >= 0."""
    *options, type_, sign_type = decoding.instruction.modifiers
    if options or sign_type != "s32":
        raise decoding.unsupported()
    dtype = DTYPES[type_]
    return elementwise(decoding, lambda a, b, c: np.where(c >= 0, a, b), (dtype, dtype, S32), dtype)


@decodes("testp")
def property_of(decoding: Decoding) -> Step:
    tests: dict[str, Callable[..., Value]] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "notanumber": np.isnan,
        "number": lambda a: ~np.isnan(a),
    }
    return elementwise(decoding, tests[decoding.choose(*tests)], (decoding.dtype,), BOOL)


def _dtype(decoding: Decoding) -> np.dtype:
    return F16 if decoding.type == "f16" else decoding.dtype


def _comparison(decoding: Decoding, extra: tuple[str, ...] = ()) -> Comparison:
    """Return the comparison; its name ends in `u` where it holds for NaN."""
    name = decoding.instruction.modifiers[0]
    is_float = decoding.type in ("f16", "bf16", "f32", "f64")
    decoding.options(name, "ftz", *LOGIC, *extra)
    if name in ("num", "nan") and is_float:
        return _with_numbers(decoding, _both_numbers if name == "num" else _one_nan)
    if name in COMPARISONS:
        compare = COMPARISONS[name]
        # numpy's != holds for NaN, PTX's ne does not.
        if is_float and name == "ne":
            return _with_numbers(decoding, lambda a, b: (a < b) | (a > b))
        return _with_numbers(decoding, compare) if is_float else compare
    if is_float and name.endswith("u") and name[:-1] in COMPARISONS:
        ordered = COMPARISONS[name[:-1]]
        return _with_numbers(decoding, lambda a, b: ordered(a, b) | _one_nan(a, b))
    raise decoding.unsupported()


def _with_numbers(decoding: Decoding, compare: Comparison) -> Comparison:
    if decoding.type != "bf16":
        return compare
    return lambda a, b: compare(bfloat16_to_float32(a), bfloat16_to_float32(b))


def _both_numbers(a: Value, b: Value) -> Value:
    return ~_one_nan(a, b)


def _one_nan(a: Value, b: Value) -> Value:
    return np.isnan(a) | np.isnan(b)

"""cvt: between types."""

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.element_types import DTYPES, F16, F32, F64, U32, Value
from tests.cuda.ptx.instructions import half
from tests.cuda.ptx.instructions.floating import saturate
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes, elementwise
from tests.cuda.ptx.instructions.rounding import (
    bfloat16_to_float32,
    float32_to_bfloat16,
    float32_to_tf32,
    float64_to_bfloat16,
    flush,
)

Function = Callable[[Value], Value]

TO_INTEGRAL: dict[str, Function] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}
FLOATS = ("f16", "bf16", "f32", "f64")


@decodes("cvt")
def convert(decoding: Decoding) -> Step:
    *options, target, source = decoding.instruction.modifiers
    if target in ("f16x2", "bf16x2") and source == "f32":
        return _pack(decoding, target, options)
    if target == "tf32" and source == "f32" and options == ["rna"]:
        return elementwise(decoding, float32_to_tf32, (F32,), U32)
    if target not in DTYPES or source not in DTYPES or target.endswith("x2"):
        raise decoding.unsupported()
    function = _function(decoding, options, target, source)
    return elementwise(decoding, function, (DTYPES[source],), DTYPES[target])


def _function(decoding: Decoding, options: list[str], target: str, source: str) -> Function:
    is_from_float, is_to_float = source in FLOATS, target in FLOATS
    known = {"rn", "sat", "ftz", "relu", *TO_INTEGRAL}
    if not set(options) <= known:
        raise decoding.unsupported()
    if not is_from_float and not is_to_float:
        return _between_integers(target, is_saturated="sat" in options)
    if not is_from_float:
        return lambda value: _round(value.astype(F64), target, value)
    if not is_to_float:
        return _to_integer(decoding, options, target, source)
    return _between_floats(options, target, source)


def _between_integers(target: str, *, is_saturated: bool) -> Function:
    dtype = DTYPES[target]
    if not is_saturated:
        return lambda value: value.astype(dtype)
    bounds = np.iinfo(dtype)

    def clamp(value: Value) -> Value:
        low = max(int(bounds.min), int(np.iinfo(value.dtype).min))
        high = min(int(bounds.max), int(np.iinfo(value.dtype).max))
        return np.clip(value, low, high).astype(dtype)

    return clamp


def _to_integer(decoding: Decoding, options: list[str], target: str, source: str) -> Function:
    """Numbers beyond the type become its nearest; NaN becomes 0."""
    rounding = [option for option in options if option in TO_INTEGRAL]
    if len(rounding) != 1:
        raise decoding.unsupported()
    to_integral, dtype = TO_INTEGRAL[rounding[0]], DTYPES[target]
    bounds = np.iinfo(dtype)
    is_flushed = "ftz" in options

    def function(value: Value) -> Value:
        value = flush(value) if is_flushed else value
        whole = to_integral(_as_float64(value, source))
        inside = np.where(np.isnan(whole) | (whole <= bounds.min), 0, whole)
        inside = np.where(inside >= float(bounds.max), 0, inside).astype(dtype)
        inside = np.where(whole >= float(bounds.max), dtype.type(bounds.max), inside)
        return np.where(whole <= float(bounds.min), dtype.type(bounds.min), inside)

    return function


def _between_floats(options: list[str], target: str, source: str) -> Function:
    steps: list[Function] = []
    if "ftz" in options and source == "f32":
        steps.append(flush)
    steps.append(lambda value: _as_float64(value, source))
    steps.extend(TO_INTEGRAL[option] for option in options if option in TO_INTEGRAL)
    if "relu" in options:
        steps.append(lambda value: np.maximum(value, 0))
    if "sat" in options:
        steps.append(saturate)
    steps.append(lambda value: _round(value, target, value))
    if "ftz" in options and target == "f32":
        steps.append(flush)
    if (options, target, source) in (([], "f32", "f16"), ([], "f32", "bf16")):
        return _widen if source == "f16" else bfloat16_to_float32
    return lambda value: _apply(steps, value)


def _apply(steps: list[Function], value: Value) -> Value:
    for step in steps:
        value = step(value)
    return value


def _widen(value: Value) -> Value:
    return value.astype(F32)


def _as_float64(value: Value, type_: str) -> Value:
    return (bfloat16_to_float32(value) if type_ == "bf16" else value).astype(F64)


def _round(value: Value, target: str, exact: Value) -> Value:
    """Round to a float type; `exact` is the same number before it was made a float64."""
    if target == "bf16":
        return float64_to_bfloat16(value)
    if target == "f16":
        return half.bits_of(exact, "f16").view(F16)
    return exact.astype(DTYPES[target])


def _pack(decoding: Decoding, target: str, options: list[str]) -> Step:
    """The first source becomes the upper half."""
    if not set(options) <= {"rn", "relu"}:
        raise decoding.unsupported()

    def function(upper: Value, lower: Value) -> Value:
        if "relu" in options:
            upper, lower = np.maximum(upper, 0), np.maximum(lower, 0)
        high, low = (_half_bits(value, target).astype(U32) for value in (upper, lower))
        return (high << np.uint32(16)) | low

    return elementwise(decoding, function, (F32, F32), U32)


def _half_bits(value: Value, target: str) -> Value:
    if target == "bf16x2":
        return float32_to_bfloat16(value)
    return half.bits_of(value, "f16")

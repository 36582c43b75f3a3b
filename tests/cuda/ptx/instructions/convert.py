"""cvt: between types."""

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.element_types import DTYPES, F16, F32, F64, U32, Value
from tests.cuda.ptx.instructions import half
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes, elementwise
from tests.cuda.ptx.instructions.rounding import bfloat16_to_float32, float32_to_tf32

Function = Callable[[Value], Value]

# Options, target and source of conversions from and to floats.
OF_FLOATS: dict[tuple[tuple[str, ...], str, str], Function] = {
    (("rna",), "tf32", "f32"): float32_to_tf32,
    (("sat",), "f32", "f32"): lambda value: np.fmin(np.fmax(value, F32.type(0)), F32.type(1)),
    ((), "f32", "f16"): lambda value: value.astype(F32),
    ((), "f32", "bf16"): bfloat16_to_float32,
    (("rn",), "f16", "f32"): lambda value: half.bits_of(value, "f16").view(F16),
    (("rn",), "bf16", "f32"): lambda value: half.bits_of(value.astype(F64), "bf16"),
    (("rn",), "f32", "s32"): lambda value: value.astype(F32),
    (("rn",), "f32", "u32"): lambda value: value.astype(F32),
}
INTEGERS = {f"{kind}{bits}" for kind in "us" for bits in (8, 16, 32, 64)}


@decodes("cvt")
def convert(decoding: Decoding) -> Step:
    *options, target, source = decoding.instruction.modifiers
    if target in ("f16x2", "bf16x2") and (options, source) == (["rn"], "f32"):
        return _pack(decoding, target.removesuffix("x2"))
    function = OF_FLOATS.get((tuple(options), target, source))
    if function is None and not options and {target, source} <= INTEGERS:
        function = _to_integer(DTYPES[target])
    if function is None:
        raise decoding.unsupported()
    return elementwise(decoding, function, (DTYPES[source],), DTYPES[target])


def _to_integer(dtype: np.dtype) -> Function:
    return lambda value: value.astype(dtype)


def _pack(decoding: Decoding, target: str) -> Step:
    """The first source becomes the upper half."""

    def function(upper: Value, lower: Value) -> Value:
        high, low = (half.bits_of(v.astype(F64), target).astype(U32) for v in (upper, lower))
        return (high << np.uint32(16)) | low

    return elementwise(decoding, function, (F32, F32), U32)

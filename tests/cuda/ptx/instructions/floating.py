"""float32 arithmetic.

Approximations of the hardware are replaced by results within their documented error.
"""

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.element_types import F32, Value
from tests.cuda.ptx.instructions import half, integer
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes, elementwise
from tests.cuda.ptx.instructions.rounding import flush, fused_multiply_add, fused_rounded_down

FUNCTIONS: dict[str, np.ufunc] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": np.fmin,
    "max": np.fmax,
    "neg": np.negative,
    "abs": np.abs,
    "div": np.divide,
    "sqrt": np.sqrt,
}
OF_INTEGERS: dict[str, Callable[[Decoding], Step]] = {
    "mul": integer.multiply,
    "div": integer.divide,
}


@decodes("add", "sub", "mul", "min", "max", "neg", "abs", "div", "sqrt")
def arithmetic(decoding: Decoding) -> Step:
    name = decoding.instruction.name
    if name == "add" and decoding.type in half.TYPES:
        return half.add(decoding)
    if decoding.type != "f32":
        return OF_INTEGERS.get(name, integer.arithmetic)(decoding)
    decoding.options("rn")
    return _floating(decoding, FUNCTIONS[name], FUNCTIONS[name].nin)


@decodes("fma")
def fused(decoding: Decoding) -> Step:
    if decoding.type in half.TYPES:
        return half.fused(decoding)
    rounding = decoding.choose("rn", "rm")
    function = fused_multiply_add if rounding == "rn" else fused_rounded_down
    return _floating(decoding, function, 3)


@decodes("rcp")
def reciprocal(decoding: Decoding) -> Step:
    decoding.options("rn")
    return _floating(decoding, lambda a: F32.type(1) / a, 1)


@decodes("ex2")
def power_of_two(decoding: Decoding) -> Step:
    if decoding.options("approx", "ftz") != {"approx", "ftz"}:
        raise decoding.unsupported()
    return _floating(decoding, lambda a: flush(np.exp2(flush(a))), 1)


@decodes("copysign")
def copy_sign(decoding: Decoding) -> Step:
    """b with the sign of a."""
    decoding.options()
    return _floating(decoding, lambda a, b: np.copysign(b, a), 2)


def _floating(decoding: Decoding, function: Callable[..., Value], count: int) -> Step:
    if decoding.type != "f32":
        raise decoding.unsupported()
    return elementwise(decoding, function, (F32,) * count, F32)

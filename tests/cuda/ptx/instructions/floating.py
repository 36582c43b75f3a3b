"""float32 and float64 arithmetic.

Approximations of the hardware are replaced by results within their documented error.
"""

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.element_types import F32, F64, Value
from tests.cuda.ptx.errors import Unsupported
from tests.cuda.ptx.instructions import half, integer
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes, elementwise
from tests.cuda.ptx.instructions.rounding import directed, flush, fused_multiply_add, sum_to_odd

Function = Callable[..., Value]

BINARY: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": np.fmin,
    "max": np.fmax,
}
BINARY_NAN: dict[str, Function] = {"min": np.minimum, "max": np.maximum}
UNARY: dict[str, Function] = {"neg": np.negative, "abs": np.abs}
ROUNDINGS = ("rn", "rz", "rm", "rp")
# Of float64, exact or rounded to odd, for operands that are float32.
EXACT: dict[str, Function] = {
    "add": sum_to_odd,
    "sub": lambda a, b: sum_to_odd(a, -b),
    "mul": np.multiply,
    "fma": lambda a, b, c: sum_to_odd(a * b, c),
}
INTEGER: dict[str, Callable[[Decoding], Step]] = {
    "add": integer.arithmetic,
    "sub": integer.arithmetic,
    "min": integer.arithmetic,
    "max": integer.arithmetic,
    "mul": integer.multiply,
    "div": integer.divide,
    "neg": integer.negate,
    "abs": integer.absolute,
}


@decodes("add", "sub", "mul", "min", "max")
def binary(decoding: Decoding) -> Step:
    name = decoding.instruction.name
    if decoding.type in half.TYPES:
        return half.binary(decoding)
    if decoding.type not in ("f32", "f64"):
        return INTEGER[name](decoding)
    if name in ("min", "max"):
        options = decoding.options("ftz", "NaN")
        functions = BINARY_NAN if "NaN" in options else BINARY
    else:
        options, functions = decoding.options("ftz", "sat", *ROUNDINGS), BINARY
    return _floating(decoding, _rounded(functions[name], EXACT.get(name), options), 2, options)


@decodes("neg", "abs")
def unary(decoding: Decoding) -> Step:
    name = decoding.instruction.name
    if decoding.type in half.TYPES:
        return half.unary(decoding)
    if decoding.type not in ("f32", "f64"):
        return INTEGER[name](decoding)
    return _floating(decoding, UNARY[name], 1, decoding.options("ftz"))


@decodes("fma")
def fused(decoding: Decoding) -> Step:
    if decoding.type in half.TYPES:
        return half.fused(decoding)
    if decoding.type != "f32":
        raise decoding.unsupported()
    options = decoding.options("ftz", "sat", *ROUNDINGS)
    return _floating(decoding, _rounded(fused_multiply_add, EXACT["fma"], options), 3, options)


@decodes("div")
def divide(decoding: Decoding) -> Step:
    if decoding.type not in ("f32", "f64"):
        return INTEGER["div"](decoding)
    return _floating(decoding, np.divide, 2, decoding.options("rn", "full", "approx", "ftz"))


@decodes("rcp")
def reciprocal(decoding: Decoding) -> Step:
    options = decoding.options("rn", "approx", "ftz")
    return _floating(decoding, lambda a: a.dtype.type(1) / a, 1, options)


@decodes("sqrt")
def square_root(decoding: Decoding) -> Step:
    return _floating(decoding, np.sqrt, 1, decoding.options("rn", "approx", "ftz"))


@decodes("rsqrt")
def reciprocal_square_root(decoding: Decoding) -> Step:
    return _through_float64(decoding, lambda a: 1 / np.sqrt(a))


@decodes("ex2")
def power_of_two(decoding: Decoding) -> Step:
    options = decoding.options("approx", "ftz")
    if decoding.type != "f32":
        raise decoding.unsupported()
    return _floating(decoding, np.exp2, 1, options)


@decodes("lg2")
def logarithm(decoding: Decoding) -> Step:
    return _through_float64(decoding, np.log2)


@decodes("sin")
def sine(decoding: Decoding) -> Step:
    return _through_float64(decoding, np.sin)


@decodes("cos")
def cosine(decoding: Decoding) -> Step:
    return _through_float64(decoding, np.cos)


@decodes("tanh")
def hyperbolic_tangent(decoding: Decoding) -> Step:
    return _through_float64(decoding, np.tanh)


@decodes("copysign")
def copy_sign(decoding: Decoding) -> Step:
    """b with the sign of a."""
    decoding.options()
    dtype = decoding.dtype
    return elementwise(decoding, lambda a, b: np.copysign(b, a), (dtype, dtype), dtype)


def _rounded(nearest: Function, exact: Function | None, options: set[str]) -> Function:
    """Return a function that rounds as the options say."""
    others = options & {"rz", "rm", "rp"}
    if not others:
        return nearest
    if exact is None:
        raise Unsupported(f"not interpreted: rounding {others}")
    return directed(exact, others.pop())


def _through_float64(decoding: Decoding, function: Function) -> Step:
    if decoding.type != "f32":
        raise decoding.unsupported()
    options = decoding.options("approx", "ftz")
    return _floating(decoding, lambda a: function(a.astype(F64)).astype(F32), 1, options)


def _floating(decoding: Decoding, function: Function, count: int, options: set[str]) -> Step:
    if decoding.type not in ("f32", "f64"):
        raise decoding.unsupported()
    if "ftz" in options:
        function = _flushing(function)
    if "sat" in options:
        function = _saturating(function)
    return elementwise(decoding, function, (decoding.dtype,) * count, decoding.dtype)


def _flushing(function: Function) -> Function:
    return lambda *values: flush(function(*[flush(value) for value in values]))


def _saturating(function: Function) -> Function:
    """Clamp to [0, 1]; NaN becomes 0."""
    return lambda *values: saturate(function(*values))


def saturate(value: Value) -> Value:
    """Clamp to [0, 1]; NaN becomes 0."""
    one = value.dtype.type(1)
    return np.fmin(np.fmax(value, value.dtype.type(0)), one)

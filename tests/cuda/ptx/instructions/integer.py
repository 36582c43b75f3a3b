"""Integer arithmetic and logic."""

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.element_types import S64, SIGNED, U32, U64, UNSIGNED, Value
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes, elementwise
from tests.cuda.ptx.syntax import Immediate

# Results wrap around.
FUNCTIONS: dict[str, np.ufunc] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "rem": np.fmod,  # with the sign of the dividend
}


@decodes("and", "or", "xor", "not", "rem")
def arithmetic(decoding: Decoding) -> Step:
    decoding.options()
    function, dtype = FUNCTIONS[decoding.instruction.name], decoding.dtype
    return elementwise(decoding, function, (dtype,) * function.nin, dtype)


@decodes("shl")
def shift_left(decoding: Decoding) -> Step:
    decoding.options()
    return _shift(decoding, np.left_shift, UNSIGNED[decoding.dtype.itemsize])


@decodes("shr")
def shift_right(decoding: Decoding) -> Step:
    decoding.options()
    return _shift(decoding, np.right_shift, decoding.dtype)


def _shift(decoding: Decoding, shift: Callable[..., Value], dtype: np.dtype) -> Step:
    """Shift; by as many bits as there are or more, all come from outside: zeros, or signs."""
    bits = 8 * dtype.itemsize
    amount = decoding.operands[2]
    if isinstance(amount, Immediate) and 0 <= amount.bits < bits:
        by = dtype.type(amount.bits)
        return elementwise(decoding, lambda value, _: shift(value, by), (dtype, U32), dtype)

    def function(value: Value, amount: Value) -> Value:
        shifted = shift(value, np.minimum(amount, bits - 1).astype(dtype))
        return shifted if dtype.kind == "i" else np.where(amount < bits, shifted, dtype.type(0))

    return elementwise(decoding, function, (dtype, U32), dtype)


@decodes("shf")
def funnel_shift(decoding: Decoding) -> Step:
    """Shift the 64 bits {b, a}; `l` returns the upper half, `r` the lower one."""
    options = decoding.options("l", "r", "wrap", "clamp")
    is_wrapped, is_left = "wrap" in options, "l" in options

    def function(low: Value, high: Value, amount: Value) -> Value:
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        n = (amount & np.uint32(31)) if is_wrapped else np.minimum(amount, np.uint32(32))
        n = n.astype(np.uint64)
        moved = ((both << n) >> np.uint64(32)) if is_left else (both >> n)
        return (moved & np.uint64(0xFFFFFFFF)).astype(np.uint32)

    return elementwise(decoding, function, (U32, U32, U32), U32)


@decodes("mad")
def multiply_add(decoding: Decoding) -> Step:
    product, dtype, result = _product(decoding)
    return elementwise(decoding, lambda a, b, c: product(a, b) + c, (dtype, dtype, result), result)


def multiply(decoding: Decoding) -> Step:
    product, dtype, result = _product(decoding)
    return elementwise(decoding, product, (dtype, dtype), result)


def _product(decoding: Decoding) -> tuple[Callable[[Value, Value], Value], np.dtype, np.dtype]:
    """Return a function, the type of its operands and that of its result."""
    part, dtype = decoding.choose("lo", "hi", "wide"), decoding.dtype
    if part == "lo":
        return np.multiply, dtype, dtype
    if dtype.itemsize == 8:
        return (_high_unsigned if dtype.kind == "u" else _high_signed), dtype, dtype
    wide = (SIGNED if dtype.kind == "i" else UNSIGNED)[2 * dtype.itemsize]
    if part == "wide":
        return lambda a, b: a.astype(wide) * b.astype(wide), dtype, wide
    shift = wide.type(8 * dtype.itemsize)
    return lambda a, b: ((a.astype(wide) * b.astype(wide)) >> shift).astype(dtype), dtype, dtype


def _high_unsigned(a: Value, b: Value) -> Value:
    """Upper 64 bits of the product, from halves of 32."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a1, a0, b1, b0 = a >> half, a & low, b >> half, b & low
    middle = a1 * b0 + ((a0 * b0) >> half)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (other >> half)


def _high_signed(a: Value, b: Value) -> Value:
    high = _high_unsigned(a.view(U64), b.view(U64)).view(S64)
    return high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)


def divide(decoding: Decoding) -> Step:
    """Rounded towards zero; what a division by zero gives is not defined, and 0 here."""
    decoding.options()

    def quotient(a: Value, b: Value) -> Value:
        return (a - np.fmod(a, b)) // np.where(b == 0, 1, b).astype(b.dtype) * (b != 0)

    return elementwise(decoding, quotient, (decoding.dtype, decoding.dtype), decoding.dtype)


@decodes("popc")
def count_bits(decoding: Decoding) -> Step:
    decoding.options()
    return elementwise(
        decoding, lambda a: np.bitwise_count(a).astype(np.uint32), (decoding.dtype,), U32
    )


@decodes("clz")
def count_leading_zeros(decoding: Decoding) -> Step:
    decoding.options()
    bits = 8 * decoding.dtype.itemsize
    return elementwise(
        decoding,
        lambda a: (bits - np.bitwise_count(_smear(a))).astype(np.uint32),
        (decoding.dtype,),
        U32,
    )


@decodes("bfind")
def find_highest_bit(decoding: Decoding) -> Step:
    """The position of the highest bit, or by how much to shift it to the top; all ones if there is
    none."""
    options, dtype = decoding.options("shiftamt"), decoding.dtype
    if dtype.kind == "i":
        raise decoding.unsupported()

    def function(value: Value) -> Value:
        count = np.bitwise_count(_smear(value)).astype(np.uint32)
        position = count - np.uint32(1)
        if "shiftamt" in options:
            position = np.where(count == 0, position, np.uint32(8 * dtype.itemsize) - count)
        return position

    return elementwise(decoding, function, (dtype,), U32)


def _smear(value: Value) -> Value:
    """Set all bits below the highest one."""
    dtype = value.dtype
    shift = 1
    while shift < 8 * dtype.itemsize:
        value = value | (value >> dtype.type(shift))
        shift *= 2
    return value


@decodes("brev")
def reverse_bits(decoding: Decoding) -> Step:
    decoding.options()
    dtype = decoding.dtype
    last = 8 * dtype.itemsize - 1

    def function(value: Value) -> Value:
        result = 0 * value
        for bit in range(last + 1):
            result = result | (
                ((value >> dtype.type(bit)) & dtype.type(1)) << dtype.type(last - bit)
            )
        return result

    return elementwise(decoding, function, (dtype,), dtype)


@decodes("bfi")
def insert_bits(decoding: Decoding) -> Step:
    """The low `length` bits of a at `start` of b."""
    decoding.options()
    dtype = decoding.dtype
    bits = 8 * dtype.itemsize

    def function(field: Value, value: Value, start: Value, length: Value) -> Value:
        start, length = start & np.uint32(0xFF), length & np.uint32(0xFF)
        by = np.minimum(start, bits - 1).astype(dtype)
        ones = (dtype.type(1) << np.minimum(length, bits - 1).astype(dtype)) - dtype.type(1)
        ones = np.where(length < bits, ones, ~dtype.type(0))
        where = np.where(start < bits, ones << by, dtype.type(0))
        return (value & ~where) | ((field << by) & where)

    return elementwise(decoding, function, (dtype, dtype, U32, U32), dtype)


@decodes("prmt")
def permute_bytes(decoding: Decoding) -> Step:
    """Each nibble of c names a byte of {b, a}; with its highest bit, that byte's sign instead."""
    if decoding.instruction.modifiers != ("b32",):
        raise decoding.unsupported()

    def function(low: Value, high: Value, selector: Value) -> Value:
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        result = 0 * low
        for byte in range(4):
            nibble = (selector >> np.uint32(4 * byte)) & np.uint32(0xF)
            shift = (np.uint64(8) * (nibble & np.uint32(7))).astype(np.uint64)
            taken = ((both >> shift) & np.uint64(0xFF)).astype(np.uint32)
            sign = np.where(taken >> np.uint32(7) == 1, np.uint32(0xFF), np.uint32(0))
            taken = np.where(nibble >> np.uint32(3) == 1, sign, taken)
            result = result | (taken << np.uint32(8 * byte))
        return result

    return elementwise(decoding, function, (U32, U32, U32), U32)

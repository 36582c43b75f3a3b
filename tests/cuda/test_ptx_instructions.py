"""Instructions of the PTX interpreter against Python's integers and exact rational numbers.

Here are edges that compiled code hardly meets: test_ptx_compiled.py runs what nvcc makes of lines
of CUDA C++, and test_ptx_contract.py each primitive against its formula.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tests.cuda.handwritten import evaluate

SPECIAL = (0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 255, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF)


def operands(count: int, bits: int) -> list[list[int]]:
    """Every pair of special numbers, then random ones; other columns are random."""
    rng = np.random.default_rng(0)
    special = [*SPECIAL, *((number << 32) | 5 for number in SPECIAL if bits == 64)]
    mask = (1 << bits) - 1
    pairs = [(x & mask, y & mask) for x in special for y in special]
    columns = [[x for x, _ in pairs], [y for _, y in pairs]]
    columns += [[int(n) & mask for n in rng.integers(0, 2**63, len(pairs))] for _ in range(2)]
    drawn = [[int(n) & mask for n in rng.integers(0, 2**63, 95)] for _ in range(4)]
    return [column + more for column, more in zip(columns, drawn, strict=True)][:count]


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def quotient(a: int, b: int) -> int:
    magnitude = abs(a) // abs(b)
    return magnitude if (a < 0) == (b < 0) else -magnitude


def on_signed(function: Callable[..., int], bits: int = 32) -> Callable[..., int]:
    return lambda *values: function(*[signed(value, bits) for value in values])


def inserted_field(a: int, b: int, start: int, length: int) -> int:
    start, length = start & 255, length & 255
    for i in range(length):
        if start + i <= 31:
            b = b & ~(1 << (start + i)) | ((a >> i) & 1) << (start + i)
    return b


def permuted_bytes(a: int, b: int, selector: int) -> int:
    both, result = (b << 32) | a, 0
    for i in range(4):
        nibble = (selector >> (4 * i)) & 15
        byte = (both >> (8 * (nibble & 7))) & 255
        result |= ((255 if byte >> 7 else 0) if nibble >> 3 else byte) << (8 * i)
    return result


# Instruction without operands: bits of the operands and of the result, how many, the formula.
INTEGERS: dict[str, tuple[int, int, int, Callable[..., int]]] = {
    "add.s64": (64, 64, 2, lambda a, b: a + b),
    "sub.s32": (32, 32, 2, lambda a, b: a - b),
    "mul.lo.s64": (64, 64, 2, lambda a, b: a * b),
    "mul.hi.s32": (32, 32, 2, on_signed(lambda a, b: (a * b) >> 32)),
    "mul.hi.u64": (64, 64, 2, lambda a, b: (a * b) >> 64),
    "mul.hi.s64": (64, 64, 2, on_signed(lambda a, b: (a * b) >> 64, 64)),
    "mul.wide.s32": (32, 64, 2, on_signed(lambda a, b: a * b)),
    "mul.wide.u32": (32, 64, 2, lambda a, b: a * b),
    "mad.lo.s32": (32, 32, 3, lambda a, b, c: a * b + c),
    "div.s32": (32, 32, 2, on_signed(quotient)),
    "div.u64": (64, 64, 2, lambda a, b: a // b),
    "rem.s64": (64, 64, 2, on_signed(lambda a, b: a - quotient(a, b) * b, 64)),
    "min.s32": (32, 32, 2, on_signed(min)),
    "max.u32": (32, 32, 2, max),
    "neg.s32": (32, 32, 1, lambda a: -a),
    "not.b32": (32, 32, 1, lambda a: ~a),
    "or.b64": (64, 64, 2, lambda a, b: a | b),
    "popc.b32": (32, 32, 1, lambda a: a.bit_count()),
    "clz.b32": (32, 32, 1, lambda a: 32 - a.bit_length()),
    "bfind.u32": (32, 32, 1, lambda a: a.bit_length() - 1),
    "bfind.shiftamt.u32": (32, 32, 1, lambda a: 32 - a.bit_length() if a else -1),
    "brev.b32": (32, 32, 1, lambda a: int(f"{a:032b}"[::-1], 2)),
    "shl.b32": (32, 32, 2, lambda a, n: a << n if n < 32 else 0),
    "shr.u32": (32, 32, 2, lambda a, n: a >> n),
    "shr.s32": (32, 32, 2, lambda a, n: signed(a) >> min(n, 31)),
    "shf.l.wrap.b32": (32, 32, 3, lambda a, b, n: ((b << 32 | a) << n % 32) >> 32),
    "shf.r.clamp.b32": (32, 32, 3, lambda a, b, n: (b << 32 | a) >> min(n, 32)),
    "prmt.b32": (32, 32, 3, permuted_bytes),
    "bfi.b32": (32, 32, 4, inserted_field),
    "cvt.s64.s32": (32, 64, 1, signed),
    "cvt.s32.s8": (32, 32, 1, lambda a: signed(a, 8)),
    "cvt.u16.u32": (32, 16, 1, lambda a: a),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_instruction_computes_what_its_name_says(name: str):
    bits, result_bits, count, formula = INTEGERS[name]
    columns = operands(count, bits)
    if name.startswith(("div", "rem")):
        columns[1] = [value or 1 for value in columns[1]]
    code = f"{name} d0, {', '.join(f'a{n}' for n in range(count))};"
    arrays = [np.array(column, f"u{bits // 8}") for column in columns]
    got = evaluate(code, *arrays, results=(f"u{result_bits // 8}",))[0]
    mask = (1 << result_bits) - 1
    assert got.tolist() == [formula(*values) & mask for values in zip(*columns, strict=True)]


ORDERED: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a < b or a > b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("type_", ["s32", "u64"])
@pytest.mark.parametrize("name", ORDERED)
def test_integers_are_compared(name: str, type_: str):
    bits = int(type_[1:])
    a, b = (np.array(column, f"u{bits // 8}") for column in operands(2, bits))
    code = (
        f"setp.{name}.{type_} p0, a0, a1; mov.u32 d0, 0; @p0 mov.u32 d0, 1; @!p0 add.u32 d0, d0, 2;"
    )
    kind = f"{type_[0].replace('s', 'i')}{bits // 8}"
    expected = [
        1 if ORDERED[name](*pair) else 2 for pair in zip(a.view(kind), b.view(kind), strict=True)
    ]
    assert evaluate(code, a, b)[0].tolist() == expected


def test_registers_are_packed_and_divided():
    a, b = (np.array(column, np.uint32) for column in operands(2, 32))
    code = """mov.b64 y0, {a0, a1}; mov.b64 {x0, x1}, y0;
    mov.b32 {h0, h1}, x1; mov.b32 x2, {h1, h0}; xor.b32 d0, x0, x2;"""
    np.testing.assert_array_equal(evaluate(code, a, b)[0], a ^ (b >> 16 | b << 16))


# Floats.


def floats(count: int, seed: int = 0) -> list[np.ndarray]:
    """Ordinary numbers, numbers of any exponent, subnormal and special ones."""
    rng = np.random.default_rng(seed)
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -3e-39, 3.4e38])
    arrays = []
    for _ in range(count):
        any_bits = rng.integers(0, 2**32, 400, dtype=np.uint32).view(np.float32)
        values = [rng.standard_normal(400), any_bits, rng.choice(special, 200)]
        arrays.append(np.concatenate([np.asarray(v, np.float32) for v in values]))
    return arrays


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sub", lambda a, b: a - b),
        ("div.rn", lambda a, b: a / b),
        ("copysign", lambda a, b: np.copysign(b, a)),
        # They leave out NaN.
        ("min", lambda a, b: np.where(np.isnan(a) | (b < a), b, a)),
        ("max", lambda a, b: np.where(np.isnan(a) | (b > a), b, a)),
    ],
)
def test_arithmetic_is_that_of_ieee(name: str, formula: Callable[..., np.ndarray]):
    a, b = floats(2)
    with np.errstate(all="ignore"):
        expected = formula(a, b)
    got = evaluate(f"{name}.f32 d0, a0, a1;", a, b, results=("f4",))[0]
    np.testing.assert_array_equal(got, expected)


def test_saturation_clamps_to_zero_and_one():
    a = np.array([-2, 0.25, 7, np.nan, np.inf, -np.inf], np.float32)
    got = evaluate("cvt.sat.f32.f32 d0, a0;", a, results=("f4",))[0]
    np.testing.assert_array_equal(got, [0, 0.25, 1, 0, 1, 0])


@pytest.mark.parametrize("name", [*ORDERED, *(f"{name}u" for name in ORDERED)])
def test_floats_are_compared_as_the_name_says_of_nan(name: str):
    a, b = floats(2, seed=6)
    got = evaluate(f"setp.{name}.f32 p0, a0, a1; selp.u32 d0, 1, 0, p0;", a, b)[0]
    for x, y, result in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
        has_nan = math.isnan(x) or math.isnan(y)
        expected = ORDERED[name[:2]](x, y) or (has_nan and name.endswith("u"))
        assert bool(result) == expected, (x, y)


def nearest(exact: Fraction) -> float:
    """Round a rational number to float32, ties to even, by comparing its neighbours."""
    bits = np.float32(float(exact)).view(np.uint32)
    near = [(bits + np.uint32(step)).view(np.float32) for step in (-1 % 2**32, 0, 1)]
    finite = [value for value in near if np.isfinite(value)]
    return float(
        min(finite, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) & 1))
    )


@pytest.mark.parametrize("rounding", ["rn", "rm"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_fused_product_and_sum_is_rounded_once(rounding: str):
    # Products next to the middle of two float32, and sums that move them off it by very little.
    rng = np.random.default_rng(2)
    x = (1 + rng.integers(0, 2**12, 3000) * 2.0**-12).astype(np.float32)
    y = (1 + (2 * rng.integers(0, 2**11, 3000) + 1) * 2.0**-12).astype(np.float32)
    z = (rng.choice([-1, 1], 3000) * 2.0 ** rng.integers(-90, -40, 3000)).astype(np.float32)
    a, b, c = (np.concatenate(pair) for pair in zip(floats(3, seed=1), (x, y, z), strict=True))
    got = evaluate(f"fma.{rounding}.f32 d0, a0, a1, a2;", a, b, c, results=("f4",))[0]
    wrong_if_rounded_twice = 0
    for *values, result in zip(*(v.tolist() for v in (a, b, c, got)), strict=True):
        if not all(map(math.isfinite, (*values, result))):
            continue
        exact = Fraction(values[0]) * Fraction(values[1]) + Fraction(values[2])
        if rounding == "rn":
            assert result == nearest(exact), values
            wrong_if_rounded_twice += float(np.float32(values[0] * values[1] + values[2])) != result
        else:
            above = float(np.nextafter(np.float32(result), np.float32(np.inf)))
            assert Fraction(result) <= exact, values
            assert math.isinf(above) or exact < Fraction(above), values
    assert wrong_if_rounded_twice > 10 or rounding == "rm"

"""Floating-point instructions of the PTX interpreter against exact rational numbers."""

import math
from collections.abc import Callable
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from tests.cuda.handwritten import evaluate
from tests.nightly import sampled

HALF_TYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


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


def nearest(exact: Fraction, dtype: np.dtype) -> float:
    """Round a rational number to a type, ties to even, by comparing its neighbours."""
    guess = np.asarray(float(exact)).astype(np.float32).astype(dtype)
    bits = guess.view(f"u{dtype.itemsize}")
    near = [b.astype(bits.dtype).view(dtype) for b in (bits - 1, bits, bits + 1)]
    finite = [value for value in near if np.isfinite(value)]
    best = min(finite, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(bits.dtype)) & 1))
    return float(best)


def is_ordinary(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def same(got: float, expected: float) -> bool:
    return got == expected or (math.isnan(got) and math.isnan(expected))


@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_float32_arithmetic_is_that_of_ieee(name: str):
    a, b = floats(2)
    with np.errstate(all="ignore"):
        expected = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name](a, b)
    got = evaluate(f"{name}.f32 d0, a0, a1;", a, b, results=("f4",))[0]
    np.testing.assert_array_equal(got, expected)


@sampled(4)
@pytest.mark.parametrize("rounding", ["rm", "rp", "rz"])
@pytest.mark.parametrize("name", ["add", "mul", "fma"])
def test_float32_is_rounded_as_asked(name: str, rounding: str):
    """The result does not lie beyond the exact number, and its neighbour there does."""
    a, b, c = (values[:800] for values in floats(3, seed=5))
    operands = {"add": "a0, a1", "mul": "a0, a1", "fma": "a0, a1, a2"}[name]
    got = evaluate(f"{name}.{rounding}.f32 d0, {operands};", a, b, c, results=("f4",))[0]
    for x, y, z, result in zip(*(v.tolist() for v in (a, b, c)), got, strict=True):
        if not is_ordinary(x, y, z, float(result)):
            continue
        exact = {
            "add": Fraction(x) + Fraction(y),
            "mul": Fraction(x) * Fraction(y),
            "fma": Fraction(x) * Fraction(y) + Fraction(z),
        }[name]
        down = rounding == "rm" or (rounding == "rz" and exact > 0)
        with np.errstate(over="ignore"):
            neighbour = np.nextafter(result, np.float32(np.inf if down else -np.inf))
        low, high = (result, neighbour) if down else (neighbour, result)
        if np.isfinite(neighbour):
            inside = Fraction(float(low)) < exact < Fraction(float(high))
            assert Fraction(float(result)) == exact or inside


def test_fused_product_and_sum_is_rounded_once():
    a, b, c = floats(3, seed=1)
    # Products next to the middle of two float32, and sums that move them off it by very little.
    rng = np.random.default_rng(2)
    x = (1 + rng.integers(0, 2**12, 3000) * 2.0**-12).astype(np.float32)
    y = (1 + (2 * rng.integers(0, 2**11, 3000) + 1) * 2.0**-12).astype(np.float32)
    z = (rng.choice([-1, 1], 3000) * 2.0 ** rng.integers(-90, -40, 3000)).astype(np.float32)
    a, b, c = (np.concatenate(pair) for pair in ((a, x), (b, y), (c, z)))
    got = evaluate("fma.rn.f32 d0, a0, a1, a2;", a, b, c, results=("f4",))[0]
    wrong_if_rounded_twice = 0
    for *values, result in zip(*(v.tolist() for v in (a, b, c, got)), strict=True):
        if is_ordinary(*values, result):
            exact = Fraction(values[0]) * Fraction(values[1]) + Fraction(values[2])
            assert result == nearest(exact, np.dtype(np.float32)), values
            twice = float(np.float32(values[0] * values[1] + values[2]))
            wrong_if_rounded_twice += twice != result
    assert wrong_if_rounded_twice > 10


@pytest.mark.parametrize("name", ["min", "max"])
def test_minimum_and_maximum_leave_out_nan_unless_asked(name: str):
    a, b = floats(2, seed=3)
    plain = evaluate(f"{name}.f32 d0, a0, a1;", a, b, results=("f4",))[0]
    with_nan = evaluate(f"{name}.NaN.f32 d0, a0, a1;", a, b, results=("f4",))[0]
    for x, y, one, other in zip(*(v.tolist() for v in (a, b, plain, with_nan)), strict=True):
        numbers = [value for value in (x, y) if not math.isnan(value)]
        choose = min if name == "min" else max
        expected = choose(numbers) if numbers else math.nan
        assert same(one, expected)
        assert same(other, expected if len(numbers) == 2 else math.nan)


# Instruction, formula and documented error in units in the last place.
APPROXIMATE: dict[str, tuple[Callable[[float], float], float]] = {
    "ex2.approx.f32": (lambda x: 2.0**x, 2),
    "ex2.approx.ftz.f32": (lambda x: 2.0**x, 2),
    "rcp.approx.f32": (lambda x: 1 / x, 1),
    "rcp.rn.f32": (lambda x: 1 / x, 0.5),
    "sqrt.rn.f32": (lambda x: math.sqrt(abs(x)), 0.5),
    "sqrt.approx.f32": (lambda x: math.sqrt(abs(x)), 3),
    "rsqrt.approx.f32": (lambda x: 1 / math.sqrt(abs(x)), 2),
    "lg2.approx.f32": (lambda x: math.log2(abs(x)), 2),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximation_is_within_its_documented_error(name: str):
    formula, ulps = APPROXIMATE[name]
    a = np.random.default_rng(4).uniform(-100, 100, 2000).astype(np.float32)
    operand = "f0" if name.startswith(("sqrt", "rsqrt", "lg2")) else "a0"
    got = evaluate(f"abs.f32 f0, a0; {name} d0, {operand};", a, results=("f4",))[0]
    for x, result in zip(a.tolist(), got, strict=True):
        exact = formula(x)
        assert abs(float(result) - exact) <= 1.001 * ulps * float(
            np.spacing(np.float32(abs(exact)))
        )


@pytest.mark.parametrize(("name", "ulps"), [("div.rn", 0.5), ("div.full", 2), ("div.approx", 2)])
def test_quotient(name: str, ulps: float):
    a, b = np.random.default_rng(5).uniform(0.1, 100, (2, 1000)).astype(np.float32)
    got = evaluate(f"{name}.f32 d0, a0, a1;", a, b, results=("f4",))[0]
    error = np.abs(got - a.astype(float) / b)
    assert (error <= 1.001 * ulps * np.spacing(got)).all()


def test_power_of_two_of_special_numbers():
    a = np.array([-np.inf, np.inf, np.nan, -0.0, -126, -127, -140, -160, 200], np.float32)
    flushed = evaluate("ex2.approx.ftz.f32 d0, a0;", a, results=("f4",))[0]
    kept = evaluate("ex2.approx.f32 d0, a0;", a, results=("f4",))[0]
    np.testing.assert_array_equal(flushed, [0, np.inf, np.nan, 1, 2.0**-126, 0, 0, 0, np.inf])
    np.testing.assert_array_equal(
        kept, np.array([0, np.inf, np.nan, 1, 2.0**-126, 2.0**-127, 2.0**-140, 0, np.inf])
    )


def test_small_numbers_are_flushed_only_if_asked():
    a = np.array([1e-40, -1e-40, 2.0**-126, 1.0], np.float32)
    plain = evaluate("mul.f32 d0, a0, 0f3F000000;", a, results=("f4",))[0]
    flushed = evaluate("mul.ftz.f32 d0, a0, 0f3F000000;", a, results=("f4",))[0]
    np.testing.assert_array_equal(plain, a / 2)
    np.testing.assert_array_equal(flushed, [0, 0, 0, 0.5])


def test_saturation_clamps_to_zero_and_one():
    a = np.array([-2, 0.25, 7, np.nan, np.inf, -np.inf], np.float32)
    got = evaluate("add.sat.f32 d0, a0, 0f00000000;", a, results=("f4",))[0]
    np.testing.assert_array_equal(got, [0, 0.25, 1, 0, 1, 0])


ORDERED: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a < b or a > b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("name", [*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan"])
def test_floats_are_compared_as_the_name_says_of_nan(name: str):
    a, b = floats(2, seed=6)
    got = evaluate(f"setp.{name}.f32 p0, a0, a1; selp.u32 d0, 1, 0, p0;", a, b)[0]
    for x, y, result in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
        has_nan = math.isnan(x) or math.isnan(y)
        if name in ("num", "nan"):
            expected = has_nan == (name == "nan")
        elif name in ORDERED:
            expected = ORDERED[name](x, y)
        else:
            expected = has_nan or ORDERED[name[:-1]](x, y)
        assert bool(result) == expected, (x, y)


@pytest.mark.parametrize(
    ("rounding", "function"),
    [
        ("rni", lambda x: round(x)),
        ("rzi", lambda x: math.trunc(x)),
        ("rmi", lambda x: math.floor(x)),
        ("rpi", lambda x: math.ceil(x)),
    ],
)
@pytest.mark.parametrize(
    ("type_", "low", "high"), [("s32", -(2**31), 2**31 - 1), ("u32", 0, 2**32 - 1)]
)
def test_float_becomes_an_integer(rounding: str, function, type_: str, low: int, high: int):
    a = np.concatenate([*floats(1), np.float32([0.5, 1.5, -0.5, -1.5, 2.0**31, 2.0**32, -3e9])])
    got = evaluate(f"cvt.{rounding}.{type_}.f32 d0, a0;", a)[0]
    for x, result in zip(a.tolist(), got.tolist(), strict=True):
        if math.isnan(x):
            expected = 0
        elif math.isinf(x):
            expected = high if x > 0 else low
        else:
            expected = min(max(function(x), low), high)
        assert result == expected % 2**32, x


def test_integer_becomes_a_float():
    a = np.random.default_rng(7).integers(0, 2**32, 500, dtype=np.uint32)
    signed = evaluate("cvt.rn.f32.s32 d0, a0;", a, results=("f4",))[0]
    unsigned = evaluate("cvt.rn.f32.u32 d0, a0;", a, results=("f4",))[0]
    f32 = np.dtype(np.float32)
    assert signed.tolist() == [nearest(Fraction(int(x)), f32) for x in a.view(np.int32)]
    assert unsigned.tolist() == [nearest(Fraction(int(x)), f32) for x in a]


def halves(type_: str, count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    dtype = HALF_TYPES[type_]
    ordinary = [rng.standard_normal(300).astype(dtype).view(np.uint16) for _ in range(count)]
    return [np.concatenate([o, rng.integers(0, 2**16, 300, dtype=np.uint16)]) for o in ordinary]


def values_of(bits: np.ndarray, type_: str) -> list[float]:
    return bits.view(HALF_TYPES[type_]).astype(np.float64).tolist()


@pytest.mark.parametrize("type_", HALF_TYPES)
def test_float32_is_rounded_to_16_bits(type_: str):
    a = floats(1, seed=8)[0]
    got = evaluate(f"cvt.rn.{type_}.f32 d0, a0;", a, results=("u2",))[0]
    for x, result in zip(a.tolist(), values_of(got, type_), strict=True):
        if is_ordinary(x, result):
            assert result == nearest(Fraction(x), HALF_TYPES[type_])
        else:
            with np.errstate(all="ignore"):
                assert same(result, float(np.float32(x).astype(HALF_TYPES[type_])))


@pytest.mark.parametrize("type_", HALF_TYPES)
def test_pair_has_its_first_source_above(type_: str):
    a, b = (values[:400] for values in floats(2, seed=9))
    got = evaluate(f"cvt.rn.{type_}x2.f32 d0, a0, a1;", a, b)[0]
    np.testing.assert_array_equal(got >> 16, a.astype(HALF_TYPES[type_]).view(np.uint16))
    np.testing.assert_array_equal(got & 0xFFFF, b.astype(HALF_TYPES[type_]).view(np.uint16))


@pytest.mark.parametrize("type_", HALF_TYPES)
def test_16_bits_become_a_float32(type_: str):
    a = np.arange(2**16, dtype=np.uint16)
    got = evaluate(f"cvt.f32.{type_} d0, a0;", a, results=("f4",), threads=256)[0]
    np.testing.assert_array_equal(got, a.view(HALF_TYPES[type_]).astype(np.float32))


@sampled(4)
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("type_", HALF_TYPES)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma.rn", "min", "max"])
def test_arithmetic_of_16_bits_is_rounded_once(name: str, type_: str, pairs: bool):
    a, b, c = halves(type_, 3, seed=10)
    operands = "a0, a1, a2" if name == "fma.rn" else "a0, a1"
    if pairs:
        arrays = [_pairs(values) for values in (a, b, c)]
        packed = evaluate(f"{name}.{type_}x2 d0, {operands};", *arrays)[0]
        got = np.concatenate([packed & 0xFFFF, packed >> 16]).astype(np.uint16)
        a, b, c = (np.concatenate([v, v[::-1]]) for v in (a, b, c))
    else:
        got = evaluate(f"{name}.{type_} d0, {operands};", a, b, c, results=("u2",))[0]
    numbers = [values_of(values, type_) for values in (a, b, c, got)]
    for x, y, z, result in zip(*numbers, strict=True):
        if is_ordinary(x, y, z, result):
            exact = {
                "add": Fraction(x) + Fraction(y),
                "sub": Fraction(x) - Fraction(y),
                "mul": Fraction(x) * Fraction(y),
                "fma.rn": Fraction(x) * Fraction(y) + Fraction(z),
                "min": Fraction(min(x, y)),
                "max": Fraction(max(x, y)),
            }[name]
            assert result == nearest(exact, HALF_TYPES[type_]), (x, y, z)


def _pairs(values: np.ndarray) -> np.ndarray:
    """Each number below, and those of the reversed array above."""
    return values.astype(np.uint32) | (values[::-1].astype(np.uint32) << 16)


def test_tf32_has_11_bits_and_ties_go_away_from_zero():
    a = np.float32([1.0, 1 + 2.0**-10, 1 + 2.0**-11, -(1 + 2.0**-11), 1 + 2.0**-12, np.inf, 3e38])
    got = evaluate("cvt.rna.tf32.f32 d0, a0;", a, results=("f4",))[0]
    np.testing.assert_array_equal(got[:6], [1, 1 + 2**-10, 1 + 2**-10, -(1 + 2**-10), 1, np.inf])
    random = floats(1, seed=11)[0]
    random = random[np.isfinite(random) & (np.abs(random) < 1e38) & (np.abs(random) > 1e-37)]
    got = evaluate("cvt.rna.tf32.f32 d0, a0;", random, results=("f4",))[0]
    assert (got.view(np.uint32) & 0x1FFF == 0).all()
    assert (np.abs(got - random.astype(float)) <= 2.0**-11 * np.abs(random.astype(float))).all()

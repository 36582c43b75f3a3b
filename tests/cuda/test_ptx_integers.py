"""Integer instructions of the PTX interpreter against Python's integers."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.cuda.handwritten import evaluate

SPECIAL = (0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 255, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF)


def operands(count: int, bits: int, seed: int = 0) -> list[list[int]]:
    """Every pair of special numbers, then random ones."""
    rng = np.random.default_rng(seed)
    special = [*SPECIAL, *((number << 32) | 5 for number in SPECIAL if bits == 64)]
    mask = (1 << bits) - 1
    pairs = [(x & mask, y & mask) for x in special for y in special]
    columns = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
    columns.append([int(n) & mask for n in rng.integers(0, 2**63, len(pairs))])
    drawn = [[int(n) & mask for n in rng.integers(0, 2**63, 95)] for _ in range(3)]
    return [column + more for column, more in zip(columns, drawn, strict=True)][:count]


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def truncated_quotient(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def on_signed(function: Callable[..., int], bits: int) -> Callable[..., int]:
    return lambda *values: function(*[signed(value, bits) for value in values])


def shifted_right(a: int, n: int) -> int:
    return signed(a, 32) >> min(n, 31)


def unsigned_field(a: int, start: int, length: int) -> int:
    start, length = start & 255, length & 255
    return (a >> start) & ((1 << length) - 1)


def signed_field(a: int, start: int, length: int) -> int:
    """Bit by bit, as the PTX ISA writes it."""
    start, length = start & 255, length & 255
    sign = 0 if length == 0 else (a >> min(start + length - 1, 31)) & 1
    bits = [(a >> (start + i)) & 1 if i < length and start + i <= 31 else sign for i in range(32)]
    return sum(bit << i for i, bit in enumerate(bits))


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


def funnel(a: int, b: int, n: int, *, left: bool, wraps: bool) -> int:
    n = n & 31 if wraps else min(n, 32)
    both = (b << 32) | a
    return ((both << n) >> 32) if left else (both >> n)


def find_highest(a: int) -> int:
    value = ~a if a < 0 else a
    return value.bit_length() - 1


# Instruction without operands, bits of the operands, how many, and what it computes.
CASES: dict[str, tuple[int, int, Callable[..., int]]] = {
    "add.u32": (32, 2, lambda a, b: a + b),
    "add.s64": (64, 2, lambda a, b: a + b),
    "sub.s32": (32, 2, lambda a, b: a - b),
    "mul.lo.s32": (32, 2, lambda a, b: a * b),
    "mul.lo.s64": (64, 2, lambda a, b: a * b),
    "mul.hi.u32": (32, 2, lambda a, b: (a * b) >> 32),
    "mul.hi.s32": (32, 2, on_signed(lambda a, b: (a * b) >> 32, 32)),
    "mul.hi.u64": (64, 2, lambda a, b: (a * b) >> 64),
    "mul.hi.s64": (64, 2, on_signed(lambda a, b: (a * b) >> 64, 64)),
    "mad.lo.s32": (32, 3, lambda a, b, c: a * b + c),
    "mad.hi.u32": (32, 3, lambda a, b, c: ((a * b) >> 32) + c),
    "sad.u32": (32, 3, lambda a, b, c: abs(a - b) + c),
    "min.s32": (32, 2, on_signed(min, 32)),
    "max.u32": (32, 2, max),
    "min.u64": (64, 2, min),
    "max.s64": (64, 2, on_signed(max, 64)),
    "abs.s32": (32, 1, on_signed(abs, 32)),
    "neg.s32": (32, 1, lambda a: -a),
    "not.b32": (32, 1, lambda a: ~a),
    "and.b32": (32, 2, lambda a, b: a & b),
    "or.b64": (64, 2, lambda a, b: a | b),
    "xor.b32": (32, 2, lambda a, b: a ^ b),
    "popc.b32": (32, 1, lambda a: a.bit_count()),
    "clz.b32": (32, 1, lambda a: 32 - a.bit_length()),
    "bfind.u32": (32, 1, find_highest),
    "bfind.s32": (32, 1, on_signed(find_highest, 32)),
    "brev.b32": (32, 1, lambda a: int(f"{a:032b}"[::-1], 2)),
    "shl.b32": (32, 2, lambda a, n: a << n if n < 32 else 0),
    "shr.u32": (32, 2, lambda a, n: a >> n),
    "shr.s32": (32, 2, shifted_right),
    "shf.l.wrap.b32": (32, 3, lambda a, b, n: funnel(a, b, n, left=True, wraps=True)),
    "shf.r.wrap.b32": (32, 3, lambda a, b, n: funnel(a, b, n, left=False, wraps=True)),
    "shf.l.clamp.b32": (32, 3, lambda a, b, n: funnel(a, b, n, left=True, wraps=False)),
    "shf.r.clamp.b32": (32, 3, lambda a, b, n: funnel(a, b, n, left=False, wraps=False)),
    "prmt.b32": (32, 3, permuted_bytes),
}


def results_of(code: str, columns: list[list[int]], bits: int, result_bits: int) -> list[int]:
    arrays = [np.array(column, f"u{bits // 8}") for column in columns]
    return evaluate(code, *arrays, results=(f"u{result_bits // 8}",))[0].tolist()


@pytest.mark.parametrize("name", CASES)
def test_integer_instruction_computes_what_its_name_says(name: str):
    bits, count, formula = CASES[name]
    columns = operands(count, bits)
    code = f"{name} d0, {', '.join(f'a{n}' for n in range(count))};"
    result_bits = 32 if name.startswith(("popc", "clz", "bfind")) else bits
    got = results_of(code, columns, bits, result_bits)
    mask = (1 << result_bits) - 1
    assert got == [formula(*values) & mask for values in zip(*columns, strict=True)]


@pytest.mark.parametrize("type_", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", ["div", "rem"])
def test_division_is_rounded_towards_zero(name: str, type_: str):
    bits = int(type_[1:])
    a, b = operands(2, bits)
    b = [value or 1 for value in b]
    got = results_of(f"{name}.{type_} d0, a0, a1;", [a, b], bits, bits)
    for x, y, result in zip(a, b, got, strict=True):
        if type_[0] == "s":
            x, y = signed(x, bits), signed(y, bits)
        quotient = truncated_quotient(x, y)
        assert result == (quotient if name == "div" else x - quotient * y) % 2**bits


@pytest.mark.parametrize("type_", ["s32", "u32"])
def test_wide_product_has_twice_the_bits(type_: str):
    a, b = operands(2, 32)
    got = results_of(f"mul.wide.{type_} d0, a0, a1;", [a, b], 32, 64)
    value = (lambda n: signed(n, 32)) if type_ == "s32" else int
    assert got == [value(x) * value(y) % 2**64 for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize(("name", "formula"), [("u32", unsigned_field), ("s32", signed_field)])
def test_field_is_extracted(name: str, formula: Callable[..., int]):
    a, starts, lengths = _fields()
    got = results_of(f"bfe.{name} d0, a0, a1, a2;", [a, starts, lengths], 32, 32)
    assert got == [formula(*values) for values in zip(a, starts, lengths, strict=True)]


def test_field_is_inserted():
    a, starts, lengths = _fields()
    b = a[::-1]
    got = results_of("bfi.b32 d0, a0, a1, a2, a3;", [a, b, starts, lengths], 32, 32)
    assert got == [inserted_field(*values) for values in zip(a, b, starts, lengths, strict=True)]


def _fields() -> tuple[list[int], list[int], list[int]]:
    places = [(s, n) for s in (0, 1, 5, 30, 31, 32, 40) for n in (0, 1, 8, 31, 32, 33, 200)]
    drawn = np.random.default_rng(1).integers(0, 2**32, len(places)).tolist()
    return drawn, [start for start, _ in places], [length for _, length in places]


def test_table_of_three_bits_is_any_function():
    a, b, c = operands(3, 32)
    for table in (0x00, 0x80, 0x96, 0xE8, 0xCA, 0xFF, 0x2D):
        got = results_of(f"lop3.b32 d0, a0, a1, a2, {table};", [a, b, c], 32, 32)
        for x, y, z, result in zip(a, b, c, got, strict=True):
            rows = [((x >> i & 1) << 2) | ((y >> i & 1) << 1) | (z >> i & 1) for i in range(32)]
            assert result == sum(((table >> row) & 1) << i for i, row in enumerate(rows))


@pytest.mark.parametrize("amount", [0, 1, 31])
def test_shift_by_a_constant(amount: int):
    a = operands(1, 32)[0]
    assert results_of(f"shl.b32 d0, a0, {amount};", [a], 32, 32) == [
        x << amount & 0xFFFFFFFF for x in a
    ]
    assert results_of(f"shr.s32 d0, a0, {amount};", [a], 32, 32) == [
        shifted_right(x, amount) & 0xFFFFFFFF for x in a
    ]


@pytest.mark.parametrize(
    ("conversion", "bits", "formula"),
    [
        ("s64.s32", (32, 64), lambda a: signed(a, 32)),
        ("u64.u32", (32, 64), lambda a: a),
        ("u32.u64", (64, 32), lambda a: a),
        ("s32.s8", (32, 32), lambda a: signed(a, 8)),
        ("u32.u16", (32, 32), lambda a: a & 0xFFFF),
        ("u16.u32", (32, 16), lambda a: a),
        ("sat.s8.s32", (32, 32), lambda a: min(max(signed(a, 32), -128), 127)),
        ("sat.u16.s32", (32, 16), lambda a: min(max(signed(a, 32), 0), 65535)),
        ("sat.s32.u32", (32, 32), lambda a: min(a, 2**31 - 1)),
    ],
)
def test_integers_are_converted(conversion: str, bits: tuple[int, int], formula):
    a = operands(1, bits[0])[0]
    got = results_of(f"cvt.{conversion} d0, a0;", [a], *bits)
    assert got == [formula(x) & ((1 << bits[1]) - 1) for x in a]


COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("type_", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_integers_are_compared(name: str, type_: str):
    bits = int(type_[1:])
    a, b = operands(2, bits)
    got = results_of(f"setp.{name}.{type_} p0, a0, a1; selp.b32 d0, 1, 0, p0;", [a, b], bits, 32)
    value = (lambda n: signed(n, bits)) if type_[0] == "s" else int
    assert got == [int(COMPARISONS[name](value(x), value(y))) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("combine", ["and", "or", "xor"])
def test_comparison_is_combined_and_has_an_opposite(combine: str):
    a, b, c = operands(3, 32)
    code = f"""setp.ge.u32 p2, a2, 0x40000000;
    setp.lt.{combine}.s32 p0|p1, a0, a1, p2;
    selp.u32 x0, 1, 0, p0; selp.u32 x1, 2, 0, p1; add.u32 d0, x0, x1;"""
    logic = {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}[combine]
    expected = []
    for x, y, z in zip(a, b, c, strict=True):
        less, other = int(signed(x, 32) < signed(y, 32)), int(z >= 0x40000000)
        expected.append(logic(less, other) + 2 * logic(1 - less, other))
    assert results_of(code, [a, b, c], 32, 32) == expected


def test_registers_are_packed_and_divided():
    a, b = operands(2, 32)
    code = """mov.b64 y0, {a0, a1}; mov.b64 {x0, x1}, y0;
    mov.b32 {h0, h1}, x1; mov.b32 x2, {h1, h0}; xor.b32 d0, x0, x2;"""
    expected = [x ^ ((y >> 16) | ((y & 0xFFFF) << 16)) for x, y in zip(a, b, strict=True)]
    assert results_of(code, [a, b], 32, 32) == expected


def test_guard_chooses_threads():
    a, b = operands(2, 32)
    code = "mov.u32 d0, a0; setp.lt.u32 p0, a0, a1; @p0 mov.u32 d0, a1; @!p0 add.u32 d0, d0, 1;"
    expected = [y if x < y else (x + 1) % 2**32 for x, y in zip(a, b, strict=True)]
    assert results_of(code, [a, b], 32, 32) == expected

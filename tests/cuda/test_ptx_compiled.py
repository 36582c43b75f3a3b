"""What nvcc makes of a few lines of CUDA C++, interpreted, against the same in Python."""

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.cuda import nvcc
from tests.cuda.ptx.interpreter import Interpreter
from tests.cuda.ptx.machine import Checks
from tests.nightly import sampled

SOURCE = Path(__file__).with_name("compiled_lines.cu")
THREADS, BLOCKS = 96, 3
WEIGHTS = (11, -22, 33, -44)


class Params(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "b", "out")),
        ("weights", ctypes.c_int32 * 4),
    ]


@pytest.fixture(scope="module")
def interpreter(needs_nvcc: None) -> Interpreter:
    return Interpreter(nvcc.ptx_of([SOURCE])[0])


def run(interpreter: Interpreter, kernel: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.full(len(a), 0x7E7E7E7E, np.uint32)
    pointers = (array.ctypes.data for array in (a, b, out))
    interpreter.launch(
        kernel,
        (BLOCKS, 1, 1),
        (THREADS, 1, 1),
        bytes(Params(*pointers, (ctypes.c_int32 * 4)(*WEIGHTS))),
        shared_bytes=4 * THREADS,
        allocations=[a, b, out],
        checks=Checks(races=True, late_copies=True),
    )
    return out


@pytest.fixture(scope="module")
def words() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2**32, (2, BLOCKS * THREADS), np.uint32)
    a[:6], b[:6] = (0, 1, 2**31, 2**32 - 1, 5, 7), (0, 2**32 - 1, 2**32 - 1, 1, 2**31, 0)
    return a, b


def signed(value: int, bits: int = 32) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


def divided(a: int, b: int) -> tuple[int, int]:
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return quotient, a - quotient * b


def divide_signed(a: int, b: int) -> int:
    quotient, rest = divided(signed(a), signed(b | 1))
    return quotient - rest


def divide_long(a: int, b: int) -> int:
    quotient, rest = divided(signed(a << 32 | b, 64), (b - 2**31) | 1)
    return quotient ^ rest


def choose_by_switch(a: int, b: int) -> int:
    return [b, b * 3, b ^ 0x55, b >> 2, a + b, a - b, a * b, ~b, 17][a % 9]


def index_an_array(a: int, b: int) -> int:
    values = {(i * 5 + b) % 2**32 % 8: a + i for i in range(8)}
    return values[a % 8] + WEIGHTS[b % 4]


def loop(a: int, b: int) -> int:
    n, rounds = a % 1000 + 1, 0
    while n != 1 and rounds < 500:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        rounds += n % 64 != 5
    return rounds


def bits(a: int, b: int) -> int:
    both = b << 32 | a
    permuted = sum((both >> 8 * byte & 255) << 8 * i for i, byte in enumerate((1, 7, 4, 2)))
    funnel = (both << a % 32) >> 32
    lowest = (b & -b).bit_length()
    return int(f"{a:032b}"[::-1], 2) ^ (32 - b.bit_length()) ^ permuted ^ funnel ^ lowest


# Of threads that have nothing to do with each other.
ALONE: dict[str, Callable[[int, int], int]] = {
    "divide": lambda a, b: sum(divmod(a, b | 1)),
    "divide_signed": divide_signed,
    "divide_by_constants": lambda a, b: a // 7 + divided(signed(b), -10)[0] + a * b // 1000003,
    "divide_long": divide_long,
    "choose_by_switch": choose_by_switch,
    "index_an_array": index_an_array,
    "loop": loop,
    "bits": bits,
}


@sampled(2)
@pytest.mark.parametrize("name", ALONE)
def test_thread_computes_what_the_source_says(interpreter: Interpreter, words, name: str):
    a, b = words
    expected = [ALONE[name](int(x), int(y)) % 2**32 for x, y in zip(a, b, strict=True)]
    assert run(interpreter, name, a, b).tolist() == expected


def test_block_exchanges_by_shared_memory(interpreter: Interpreter, words):
    a, b = (array.reshape(BLOCKS, THREADS) for array in words)
    got = run(interpreter, "reverse_a_block", *words).reshape(BLOCKS, THREADS)
    np.testing.assert_array_equal(got, a[:, ::-1] ^ (b[:, ::-1] << 1))


def test_block_is_summed(interpreter: Interpreter, words):
    got = run(interpreter, "sum_a_block", *words)
    sums = words[0].reshape(BLOCKS, THREADS).sum(1, dtype=np.uint32)
    np.testing.assert_array_equal(got, np.repeat(sums, THREADS))


def test_warp_counts(interpreter: Interpreter, words):
    a, b = (array.reshape(-1, 32) for array in words)
    odd = (a & 1).astype(np.uint32)
    before = odd.cumsum(1) - odd
    expected = before + 100 * (b == 3).any(1)[:, None] + (b % 7).sum(1)[:, None]
    np.testing.assert_array_equal(run(interpreter, "count_in_warp", *words), expected.reshape(-1))


def test_block_counts_atomically(interpreter: Interpreter, words):
    a, b = (array.reshape(BLOCKS, THREADS) for array in words)
    got = run(interpreter, "count_atomically", *words).reshape(BLOCKS, THREADS)
    for block in range(BLOCKS):
        counts = np.bincount(a[block] % 4, b[block] % 16, 4)
        # The largest may come in at any time: only where the sum is larger it does not show.
        assert counts[3] > 5
        assert (got[block, :3] == counts[:3]).all()
        assert counts[3] <= got[block, 3] <= counts[3] + 5


@pytest.mark.parametrize(
    ("name", "dtype"), [("add_halves", np.float16), ("add_bfloats", ml_dtypes.bfloat16)]
)
def test_pairs_of_16_bits(interpreter: Interpreter, name: str, dtype: type):
    x, y = np.random.default_rng(1).standard_normal((2, 2 * BLOCKS * THREADS)).astype(dtype)
    got = run(interpreter, name, x.view(np.uint32), y.view(np.uint32)).view(dtype)
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    sums = (wide_x + wide_y).astype(dtype).astype(np.float64)
    exact = wide_x * wide_y + sums if name == "add_halves" else sums * wide_y
    np.testing.assert_array_equal(got, exact.astype(dtype))


def test_numbers_are_rounded_to_16_bits(interpreter: Interpreter):
    a, b = np.random.default_rng(2).standard_normal((2, BLOCKS * THREADS)).astype(np.float32)
    got = run(interpreter, "round_to_half", a.view(np.uint32), b.view(np.uint32))
    np.testing.assert_array_equal(got & 0xFFFF, a.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(got >> 16, b.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_exponential_is_within_two_units_of_the_last_place(interpreter: Interpreter, words):
    got = run(interpreter, "exponential", *words).view(np.float32)
    for a, b, result in zip(*words, got, strict=True):
        x = signed(int(a))
        exact = math.exp(math.fmod(x, 80) + 0.125 * (int(b) % 8))
        assert abs(float(result) - exact) <= 2 * np.spacing(np.float32(exact))


def test_root_and_quotient_are_rounded_correctly(interpreter: Interpreter, words):
    got = run(interpreter, "square_root", *words).view(np.float32)
    a, b = (array.astype(np.float32) for array in words)
    np.testing.assert_array_equal(got, np.sqrt(a) / (np.float32(1) + b))

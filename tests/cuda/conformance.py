"""What each primitive computes, by numpy alone, and inputs to try it on.

A primitive is a kernel of plugins/cuda/conformance: words of 32 bits in, words out.
"""

import ctypes
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from tests.cuda import golden
from tests.cuda.golden import Words


@dataclass(frozen=True)
class Primitive:
    """A primitive's formula.

    Attributes:
        draw: Inputs [blocks, IN] for a generator.
        formula: Outputs [OUT] of one block's inputs [IN].
        ulps: How many units in the last place a float32 output may be off; 0: no bit may be.
    """

    draw: Callable[[np.random.Generator], Words]
    formula: Callable[[Words], Words]
    ulps: int = 0


def inputs(name: str) -> Words:
    """Return the inputs that a primitive is tried on, the same at each call."""
    return PRIMITIVES[name].draw(np.random.default_rng(zlib.crc32(name.encode())))


def listed(library: ctypes.CDLL) -> dict[str, tuple[int, int]]:
    """Return the primitives that a library has, with the words in and out of a block."""
    lines = library.moh_cuda_conformance_list().decode().splitlines()
    return {
        name: (int(words_in), int(words_out)) for name, words_in, words_out in map(str.split, lines)
    }


def run(library: ctypes.CDLL, name: str, words: Words) -> Words:
    """Run a primitive on memory that host and device share."""
    out = np.full((len(words), listed(library)[name][1]), 0xDEADBEEF, np.uint32)
    words = np.ascontiguousarray(words)
    status = library.moh_cuda_conformance(
        name.encode(), words.ctypes.data, words.nbytes, out.ctypes.data, out.nbytes, None
    )
    assert status == 0, f"{name}: status {status}"
    return out


def outputs(name: str, words: Words) -> Words:
    """Return what a primitive should compute."""
    return np.stack([PRIMITIVES[name].formula(block) for block in words])


def find_difference(
    name: str, words: Words, got: Words, expected: Words | None = None
) -> str | None:
    """Say where an output is not what the formula gives, or what `expected` has; else None."""
    right = outputs(name, words) if expected is None else expected
    return golden.find_difference(name, got, right, ulps=PRIMITIVES[name].ulps)


# Matrices: fragments by the tables of the PTX ISA, an element at a time.

_LANES = range(32)


def _draw_tiles(rng: np.random.Generator) -> Words:
    tiles = rng.integers(0, 2**32, (4, 128), np.uint32)
    rows = np.stack([rng.permutation(32) for _ in range(4)]).astype(np.uint32)
    return np.concatenate([tiles, rows], axis=1)


def _load_matrices(count: int, transposed: bool) -> Callable[[Words], Words]:
    def formula(words: Words) -> Words:
        tile = words[:128].view(np.uint16).reshape(32, 8)
        out = np.zeros((32, 4), np.uint32)
        for matrix in range(count):
            rows = words[128 + 8 * matrix : 136 + 8 * matrix]
            elements = tile[rows].T if transposed else tile[rows]
            for lane in _LANES:
                out[lane, matrix] = elements[lane // 4].copy().view(np.uint32)[lane % 4]
        return out.ravel()

    return formula


def _draw_operands(dtype: type) -> Callable[[np.random.Generator], Words]:
    """Sums, a and b of several sizes: each block adds numbers that differ more in size."""

    def draw(rng: np.random.Generator) -> Words:
        blocks = []
        for spread in (0.0, 0.5, 1.0, 2.0):
            sums = rng.standard_normal((32, 4)).astype(np.float32)
            operands = rng.standard_normal((32, 12)) * np.exp(
                spread * rng.standard_normal((32, 12))
            )
            if dtype is np.float32:
                packed = operands[:, :6].astype(np.float32).view(np.uint32) & ~np.uint32(0x1FFF)
            else:
                packed = operands.astype(dtype).view(np.uint32)
            blocks.append(np.concatenate([sums.view(np.uint32), packed], axis=1).ravel())
        return np.stack(blocks)

    return draw


def _product(dtype: type) -> Callable[[Words], Words]:
    pack = 1 if dtype is np.float32 else 2

    def formula(words: Words) -> Words:
        lanes = words.reshape(32, 10)
        a, b, c = np.zeros((16, 8 * pack)), np.zeros((8 * pack, 8)), np.zeros((16, 8))
        for lane in _LANES:
            group, member = divmod(lane, 4)
            sums = lanes[lane, :4].view(np.float32)
            operands = lanes[lane, 4:].copy().view(dtype).astype(np.float64).reshape(6, pack)
            for i in range(4):
                c[group + 8 * (i // 2), 2 * member + i % 2] = sums[i]
            for half in range(pack):
                at = pack * member + half
                a[group, at], a[group + 8, at] = operands[0, half], operands[1, half]
                a[group, at + 4 * pack] = operands[2, half]
                a[group + 8, at + 4 * pack] = operands[3, half]
                b[at, group], b[at + 4 * pack, group] = operands[4, half], operands[5, half]
        d = _toward_zero(c + a @ b)
        out = np.zeros((32, 4), np.float32)
        for lane in _LANES:
            group, member = divmod(lane, 4)
            out[lane] = [d[group + 8 * (i // 2), 2 * member + i % 2] for i in range(4)]
        return out.view(np.uint32).ravel()

    return formula


def _toward_zero(exact: np.ndarray) -> np.ndarray:
    nearest = exact.astype(np.float32)
    beyond = np.abs(nearest.astype(np.float64)) > np.abs(exact)
    return np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)


# Memory.


def _draw_words(words: int, blocks: int = 3) -> Callable[[np.random.Generator], Words]:
    return lambda rng: rng.integers(0, 2**32, (blocks, words), np.uint32)


def _copies(words: Words) -> Words:
    groups = words.reshape(2, 32, 4).copy()
    groups[:, ::3] = 0
    return np.roll(groups, -1, axis=1).ravel()


def _barrier(words: Words) -> Words:
    return np.roll(words, -37)


def _draw_small(rng: np.random.Generator) -> Words:
    return rng.integers(-1000, 1000, (3, 64)).astype(np.int32).view(np.uint32)


def _atomic_sums(words: Words) -> Words:
    total = int(words.view(np.int32).astype(np.int64).sum())
    as_int = np.int32(total).view(np.uint32)
    return np.array([as_int, as_int, np.float32(total).view(np.uint32)])


# Lanes.


def _draw_shuffles(rng: np.random.Generator) -> Words:
    """Arguments: the same for all lanes, in each block another; in the last, any."""
    words = rng.integers(0, 2**32, (33, 32, 3), np.uint32)
    words[:32, :, 2] = np.arange(32)[:, None]
    words[32, :, 2] = rng.integers(0, 32, 32)
    return words.reshape(33, 96)


def _shuffle(source: Callable[[int, int, int], int]) -> Callable[[Words], Words]:
    """`source(lane, argument, width)` is the lane to read within a segment of that width, or one
    beyond the segment: then the value stays."""

    def formula(words: Words) -> Words:
        lanes = words.reshape(32, 3)
        out = np.zeros((32, 5, 3), np.uint32)
        for lane in _LANES:
            for i, width in enumerate((32, 16, 8, 4, 2)):
                first = lane - lane % width
                at = source(lane % width, int(lanes[lane, 2]), width)
                other = first + at if 0 <= at < width else lane
                out[lane, i] = lanes[other, 0], lanes[other, 1], lanes[other, 1]
        return out.ravel()

    return formula


def _shuffle_xor(words: Words) -> Words:
    """Lanes of an earlier segment may be read, those of a later one not."""
    lanes = words.reshape(32, 3)
    out = np.zeros((32, 5, 3), np.uint32)
    for lane in _LANES:
        for i, width in enumerate((32, 16, 8, 4, 2)):
            other = lane ^ int(lanes[lane, 2])
            other = other if other // width <= lane // width else lane
            out[lane, i] = lanes[other, 0], lanes[other, 1], lanes[other, 1]
    return out.ravel()


def _draw_predicates(rng: np.random.Generator) -> Words:
    shares = np.array([0.0, 0.1, 0.5, 0.9, 1.0])[:, None]
    return (rng.random((5, 32)) < shares) * rng.integers(1, 2**31, (5, 32), np.uint32)


def _votes(words: Words) -> Words:
    true = words != 0
    out = np.zeros((32, 6), np.uint32)
    for lane in _LANES:
        half = slice(0, 16) if lane < 16 else slice(16, 32)
        bits = np.uint32(sum(1 << i for i in _LANES if true[i]))
        mask = np.uint32(0xFFFF if lane < 16 else 0xFFFF0000)
        out[lane, :3] = bits, true.any(), true.all()
        out[lane, 3:] = bits & mask, true[half].any(), true[half].all()
    return out.ravel()


def _draw_bits(rng: np.random.Generator) -> Words:
    words = rng.integers(0, 2**32, (4, 32), np.uint32) >> rng.integers(0, 32, (4, 32), np.uint32)
    words[0] = np.uint32(1) << np.arange(32, dtype=np.uint32)
    words[1, 0] = 0
    words[1, 1] = 0xFFFFFFFF
    return words


def _bits(words: Words) -> Words:
    texts = [f"{int(word):032b}" for word in words]
    rows = [
        (text.count("1"), 32 - text.rindex("1") if "1" in text else 0, (text + "1").index("1"))
        for text in texts
    ]
    return np.array(rows, np.uint32).ravel()


# Numbers.

_SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 3.4e38], np.float32)


def _draw_floats(low: float, high: float) -> Callable[[np.random.Generator], Words]:
    def draw(rng: np.random.Generator) -> Words:
        numbers = rng.uniform(low, high, (32, 32)).astype(np.float32)
        numbers[0, : len(_SPECIAL)] = _SPECIAL
        return numbers.view(np.uint32)

    return draw


def _draw_float_bits(rng: np.random.Generator) -> Words:
    words = rng.integers(0, 2**32, (32, 32), np.uint32)
    words[0, : len(_SPECIAL)] = _SPECIAL.view(np.uint32)
    words[1] = (words[1] & 0xFFFFE000) | 0x1000  # a tie of tf32
    return np.where(np.isnan(words.view(np.float32)), np.uint32(0x7FC00000), words)


def _draw_short_bits(rng: np.random.Generator) -> Words:
    return rng.permutation(2**16).astype(np.uint32).reshape(-1, 32)


def _exp2(words: Words) -> Words:
    with np.errstate(over="ignore", under="ignore"):
        power = np.exp2(words.view(np.float32).astype(np.float64)).astype(np.float32)
    return np.where(power < np.finfo(np.float32).tiny, np.float32(0), power).view(np.uint32)


def _tf32(words: Words) -> Words:
    """Nearest multiple of a unit that is 2^13 of float32's, ties away from zero."""
    numbers = words.view(np.float32).astype(np.float64)
    finite = np.isfinite(numbers)
    mantissa, exponent = np.frexp(np.where(finite, numbers, 0.0))
    # The unit does not shrink below float32's normal numbers.
    digits = np.where(exponent < -125, 11 + exponent + 125, 11)
    scaled = np.ldexp(mantissa, digits)
    nearest = np.ldexp(np.copysign(np.floor(np.abs(scaled) + 0.5), mantissa), exponent - digits)
    with np.errstate(over="ignore"):
        result = np.where(finite, nearest, numbers).astype(np.float32).view(np.uint32)
    return np.where(np.isnan(numbers), np.uint32(0x7FFFFFFF), result)


def _convert(source: type, target: type) -> Callable[[Words], Words]:
    def formula(words: Words) -> Words:
        given = words.astype(np.uint16) if source is not np.float32 else words
        with np.errstate(over="ignore", invalid="ignore"):
            result = given.view(source).astype(target)
        bits = result.view(np.uint32 if target is np.float32 else np.uint16).astype(np.uint32)
        nan = {np.float16: 0x7FFF, ml_dtypes.bfloat16: 0x7FFF}.get(target)
        return bits if nan is None else np.where(np.isnan(result), np.uint32(nan), bits)

    return formula


PRIMITIVES = {
    "load_matrices_x4": Primitive(_draw_tiles, _load_matrices(4, False)),
    "load_matrices_x4_transposed": Primitive(_draw_tiles, _load_matrices(4, True)),
    "load_matrices_x2": Primitive(_draw_tiles, _load_matrices(2, False)),
    "load_matrices_x2_transposed": Primitive(_draw_tiles, _load_matrices(2, True)),
    "mma_m16n8k16_half": Primitive(_draw_operands(np.float16), _product(np.float16), ulps=1),
    "mma_m16n8k16_bfloat16": Primitive(
        _draw_operands(ml_dtypes.bfloat16), _product(ml_dtypes.bfloat16), ulps=1
    ),
    "mma_m16n8k8_tf32": Primitive(_draw_operands(np.float32), _product(np.float32), ulps=1),
    "copy_async_16": Primitive(_draw_words(256), _copies),
    "syncthreads": Primitive(_draw_words(128), _barrier),
    "atomic_add": Primitive(_draw_small, _atomic_sums),
    "shfl_sync": Primitive(_draw_shuffles, _shuffle(lambda _, argument, width: argument % width)),
    "shfl_xor_sync": Primitive(_draw_shuffles, _shuffle_xor),
    "shfl_up_sync": Primitive(_draw_shuffles, _shuffle(lambda lane, delta, _: lane - delta)),
    "shfl_down_sync": Primitive(_draw_shuffles, _shuffle(lambda lane, delta, _: lane + delta)),
    "votes": Primitive(_draw_predicates, _votes),
    "bits": Primitive(_draw_bits, _bits),
    "exp2_approx": Primitive(_draw_floats(-140, 130), _exp2, ulps=2),
    "round_to_tf32": Primitive(_draw_float_bits, _tf32),
    "float2half": Primitive(_draw_float_bits, _convert(np.float32, np.float16)),
    "half2float": Primitive(_draw_short_bits, _convert(np.float16, np.float32), ulps=1),
    "float2bfloat16": Primitive(_draw_float_bits, _convert(np.float32, ml_dtypes.bfloat16)),
    "bfloat162float": Primitive(_draw_short_bits, _convert(ml_dtypes.bfloat16, np.float32), ulps=1),
}

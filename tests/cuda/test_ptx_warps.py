"""Instructions that the threads of a warp run together, against loops over lanes."""

import ml_dtypes
import numpy as np
import pytest

from tests.cuda.handwritten import evaluate
from tests.cuda.ptx.errors import Divergence
from tests.nightly import sampled

LANE = np.arange(32, dtype=np.uint32)


def lanes(seed: int = 0, warps: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, 32 * warps, dtype=np.uint32)


def shuffled(mode: str, lane: int, by: int, width: int) -> tuple[int, bool]:
    """Which lane __shfl_*_sync reads in segments of `width`, and whether it is the one asked."""
    start = lane // width * width
    source = {
        "idx": start + by % width,
        "up": lane - by,
        "down": lane + by,
        "bfly": lane ^ by,
    }[mode]
    inside = source >= start if mode == "up" else source < start + width
    return source if inside else lane, inside


@sampled(4)
@pytest.mark.parametrize("width", [32, 16, 8, 4])
@pytest.mark.parametrize("by", [0, 1, 2, 3, 7, 16, 31])
@pytest.mark.parametrize("mode", ["idx", "up", "down"])
def test_shuffle_reads_the_lane_that_cuda_says(mode: str, by: int, width: int):
    check_shuffle(mode, by, width)


@pytest.mark.parametrize(("by", "width"), [(1, 32), (2, 4), (3, 8), (16, 32), (31, 32)])
def test_shuffle_swaps_lanes(by: int, width: int):
    check_shuffle("bfly", by, width)


def check_shuffle(mode: str, by: int, width: int) -> None:
    a = lanes()
    clamp = ((32 - width) << 8) | (0 if mode == "up" else 31)
    code = f"shfl.sync.{mode}.b32 d0|p0, a0, {by}, {clamp}, -1; selp.u32 d1, 1, 0, p0;"
    got, inside = evaluate(code, a, results=("u4", "u4"))
    sources, asked = zip(*(shuffled(mode, lane, by, width) for lane in range(32)), strict=True)
    warps = a.reshape(-1, 32)
    np.testing.assert_array_equal(got.reshape(-1, 32), warps[:, list(sources)])
    np.testing.assert_array_equal(inside.reshape(-1, 32)[0], asked)


def test_shuffle_by_a_number_of_each_lane():
    a, b = lanes(), lanes(1)
    got = evaluate("shfl.sync.idx.b32 d0, a0, a1, 31, -1;", a, b)[0]
    expected = np.take_along_axis(a.reshape(-1, 32), b.reshape(-1, 32).astype(int) % 32, 1)
    np.testing.assert_array_equal(got, expected.reshape(-1))


def test_votes_are_counted():
    a = np.concatenate([lanes(), np.zeros(32, np.uint32), np.full(32, 2**32 - 1, np.uint32)])
    code = """setp.ge.u32 p0, a0, 0x80000000;
    vote.sync.ballot.b32 d0, p0, -1;
    vote.sync.all.pred p1, p0, -1; vote.sync.any.pred p2, p0, -1; vote.sync.uni.pred p3, p0, -1;
    selp.u32 x0, 1, 0, p1; selp.u32 x1, 2, 0, p2; selp.u32 x2, 4, 0, p3;
    or.b32 d1, x0, x1; or.b32 d1, d1, x2;"""
    ballot, others = evaluate(code, a, results=("u4", "u4"))
    votes = (a >= 0x80000000).reshape(-1, 32)
    for warp, row in enumerate(votes):
        bits = sum(int(vote) << lane for lane, vote in enumerate(row))
        uniform = row.all() or not row.any()
        assert set(ballot[32 * warp : 32 * warp + 32]) == {bits}
        assert set(others[32 * warp : 32 * warp + 32]) == {row.all() + 2 * row.any() + 4 * uniform}


@pytest.mark.parametrize("type_", ["u32", "s32"])
@pytest.mark.parametrize("name", ["add", "min", "max"])
def test_warp_is_reduced(name: str, type_: str):
    a = lanes(2)
    got = evaluate(f"redux.sync.{name}.{type_} d0, a0, -1;", a)[0]
    values = a.view(np.int32 if type_ == "s32" else np.uint32).astype(int).reshape(-1, 32)
    expected = {"add": values.sum(1), "min": values.min(1), "max": values.max(1)}[name]
    np.testing.assert_array_equal(got, np.repeat(expected % 2**32, 32))


def test_equal_values_find_each_other():
    a = lanes(3) % 5
    a[32:64] = 7
    code = "match.any.sync.b32 d0, a0, -1; match.all.sync.b32 d1|p0, a0, -1;"
    any_, all_ = evaluate(code, a, results=("u4", "u4"))
    for warp in a.reshape(-1, 32):
        at = np.flatnonzero((a.reshape(-1, 32) == warp).all(1))[0] * 32
        for lane in range(32):
            same = sum(1 << other for other in range(32) if warp[other] == warp[lane])
            assert any_[at + lane] == same
            assert all_[at + lane] == (same if same == 2**32 - 1 else 0)


def test_threads_of_half_a_warp_exchange_among_themselves():
    a = lanes()
    code = """and.b32 x0, thread, 16; setp.eq.u32 p0, x0, 0; mov.u32 d0, 0;
    @p0 bra first;
    shfl.sync.bfly.b32 d0, a0, 1, 31, 0xffff0000; bra done;
    first: shfl.sync.bfly.b32 d0, a0, 2, 31, 0x0000ffff;
    done: bar.warp.sync -1;"""
    got = evaluate(code, a)[0].reshape(-1, 32)
    warps = a.reshape(-1, 32)
    np.testing.assert_array_equal(got[:, :16], warps[:, LANE[:16] ^ 2])
    np.testing.assert_array_equal(got[:, 16:], warps[:, LANE[16:] ^ 1])


def test_lanes_wait_for_the_members_that_come_later():
    """The odd lanes arrive over a detour that lies behind the instruction."""
    a = lanes()
    code = """and.b32 x0, thread, 1; setp.eq.u32 p0, x0, 1; mov.u32 x1, a0;
    @p0 bra detour;
    meet: shfl.sync.bfly.b32 d0, x1, 1, 31, -1; bra done;
    detour: add.u32 x1, x1, 1; bra meet;
    done: mov.u32 x2, 0;"""
    got = evaluate(code, a)[0]
    expected = (a + (LANE[np.arange(len(a)) % 32] & 1)).reshape(-1, 32)[:, LANE ^ 1]
    np.testing.assert_array_equal(got, expected.reshape(-1))


@pytest.mark.parametrize(
    "instruction",
    [
        "shfl.sync.bfly.b32 d0, a0, 1, 31, -1;",
        "vote.sync.ballot.b32 d0, p0, -1;",
        "redux.sync.add.u32 d0, a0, -1;",
        "bar.warp.sync -1;",
    ],
)
def test_members_that_never_come_are_reported(instruction: str):
    code = f"""and.b32 x0, thread, 16; setp.eq.u32 p0, x0, 0; mov.u32 d0, 0; @p0 bra done;
    {instruction} done:"""
    with pytest.raises(Divergence, match=r"\[16, 17, .*" + instruction.split()[0]):
        evaluate(code, lanes(warps=1))


NUMBERS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def fill_shared(stride: int) -> str:
    """Each thread stores its a0 at 4 * thread, in rows of 16 bytes that are `stride` apart."""
    return f"""mov.u32 x9, shared; shr.u32 x0, tid, 2; and.b32 x1, tid, 3;
    mad.lo.u32 x2, x0, {stride}, x9; shl.b32 x1, x1, 2; add.u32 x2, x2, x1;
    st.shared.u32 [x2], a0; bar.sync 0;"""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_loaded_into_fragments(count: int, transposed: bool):
    """Register i of lane l has row l / 4 and columns 2 (l % 4), + 1 of matrix i."""
    numbers = np.random.default_rng(count).integers(0, 2**16, (32, 8), dtype=np.uint16)
    a = numbers.reshape(-1).view(np.uint32)  # [128]: 32 rows of 4
    registers = [f"d{i}" for i in range(count)]
    trans = ".trans" if transposed else ""
    code = f"""{fill_shared(48)} and.b32 x3, tid, 31; mad.lo.u32 x4, x3, 48, x9;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{", ".join(registers)}}}, [x4];"""
    got = evaluate(code, a, results=("u4",) * count, shared_bytes=32 * 48)
    for index, values in enumerate(got):
        matrix = numbers[8 * index : 8 * index + 8]
        matrix = matrix.T if transposed else matrix
        for lane in range(32):
            row, column = lane // 4, 2 * (lane % 4)
            pair = int(matrix[row, column]) | int(matrix[row, column + 1]) << 16
            assert set(values.reshape(-1, 32)[:, lane]) == {pair}


def fragments(matrix: np.ndarray, rows: int) -> list[np.ndarray]:
    """Registers of a row-major fragment, by the figures of the PTX ISA: [32] uint32 each.

    `matrix` is [rows, 8 words], a word being two 16-bit numbers or one of 32 bits.
    """
    words = np.ascontiguousarray(matrix)
    places = [(0, 0), (8, 0), (0, 4), (8, 4)] if rows == 16 else [(0, 0), (0, 4)]
    return [np.array([words[lane // 4 + r, lane % 4 + c] for lane in range(32)]) for r, c in places]


@pytest.mark.parametrize("type_", ["f16", "bf16", "tf32"])
def test_matrices_are_multiplied(type_: str):
    rng = np.random.default_rng(12)
    depth, dtype = (8, np.dtype(np.float32)) if type_ == "tf32" else (16, NUMBERS[type_])
    a, b = (rng.standard_normal((rows, depth)).astype(dtype) for rows in (16, 8))
    if type_ == "tf32":
        a, b = ((v.view(np.uint32) & 0xFFFFE000).view(np.float32) for v in (a, b))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    words_a, words_b = (np.ascontiguousarray(v).view(np.uint32).reshape(-1, 8) for v in (a, b))
    inputs = [*fragments(words_a, 16), *fragments(words_b, 8), *_accumulators(c)]
    name = f"m16n8k{depth}.row.col.f32.{type_}.{type_}.f32"
    code = f"mma.sync.aligned.{name} {{d0,d1,d2,d3}}, {{a0,a1,a2,a3}}, {{a4,a5}}, {{a6,a7,a8,a9}};"
    got = evaluate(code, *inputs, results=("f4",) * 4)
    expected = _accumulators(c + a.astype(float) @ b.astype(float).T)
    for values, exact in zip(got, expected, strict=True):
        assert (np.abs(values) <= np.abs(exact)).all()
        assert (np.abs(exact - values) < np.spacing(np.abs(values))).all()


def _accumulators(matrix: np.ndarray) -> list[np.ndarray]:
    return [
        np.array([matrix[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2] for lane in range(32)])
        for i in range(4)
    ]


def test_lower_bits_of_tf32_are_not_looked_at():
    one = np.full(32, 0x3F800000, np.uint32)
    dirty = one | np.uint32(0x1FFF)
    zero = np.zeros(32, np.float32)
    code = """mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
    {d0,d1,d2,d3}, {a0,a0,a0,a0}, {a0,a0}, {a1,a1,a1,a1};"""
    clean, other = (evaluate(code, a, zero, results=("f4",) * 4) for a in (one, dirty))
    np.testing.assert_array_equal(clean, other)

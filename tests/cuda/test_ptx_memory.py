"""Memory of the PTX interpreter: what is stored is loaded, and nothing else may be touched."""

import re

import numpy as np
import pytest

from tests.cuda.handwritten import evaluate
from tests.cuda.ptx.errors import MemoryFault, Unsupported
from tests.cuda.ptx.interpreter import Interpreter

THREADS = np.arange(64, dtype=np.uint32)


def test_vectors_are_stored_and_loaded_in_order():
    code = """mov.u32 x9, shared; shl.b32 x0, tid, 4; add.u32 x9, x9, x0;
    add.u32 x1, a0, 1; add.u32 x2, a0, 2; add.u32 x3, a0, 3;
    st.shared.v4.u32 [x9], {a0, x1, x2, x3}; bar.sync 0;
    xor.b32 x4, tid, 1; shl.b32 x4, x4, 4; mov.u32 x5, shared; add.u32 x5, x5, x4;
    ld.shared.v2.u32 {d0, d1}, [x5+8];"""
    got = evaluate(code, THREADS * 10, results=("u4", "u4"), shared_bytes=64 * 16)
    np.testing.assert_array_equal(got[0], (THREADS ^ 1) * 10 + 2)
    np.testing.assert_array_equal(got[1], (THREADS ^ 1) * 10 + 3)


def test_small_types_are_extended():
    code = """mov.u32 x9, shared; shl.b32 x0, tid, 2; add.u32 x9, x9, x0; st.shared.u32 [x9], a0;
    ld.shared.s8 d0, [x9]; ld.shared.u8 d1, [x9]; ld.shared.s16 d2, [x9+2];"""
    a = np.array([0x8001FF, 0x7FFF0080, 0x80000001], np.uint32)
    got = evaluate(code, a, results=("i4", "u4", "i4"), shared_bytes=16)
    assert got[0].tolist() == [-1, -128, 1]
    assert got[1].tolist() == [255, 128, 1]
    assert got[2].tolist() == [0x80, 0x7FFF, -0x8000]


def test_every_block_has_shared_memory_of_its_own():
    code = """mov.u32 x9, shared; setp.eq.u32 p0, tid, 0; @p0 st.shared.u32 [x9], a0; bar.sync 0;
    ld.shared.u32 d0, [x9];"""
    got = evaluate(code, THREADS, threads=16, shared_bytes=4)[0]
    np.testing.assert_array_equal(got, THREADS // 16 * 16)


def test_shared_memory_that_was_not_written_is_nan():
    code = "mov.u32 x9, shared; ld.shared.f32 d0, [x9];"
    assert np.isnan(evaluate(code, THREADS, results=("f4",), shared_bytes=4)[0]).all()


def test_threads_have_local_memory_of_their_own():
    code = """.local .align 4 .b8 depot[16]; mov.u64 y0, depot; cvta.local.u64 y1, y0;
    and.b32 x0, tid, 3; mul.wide.u32 y2, x0, 4; add.u64 y3, y1, y2;
    st.u32 [y3], a0; cvta.to.local.u64 y4, y3; ld.local.u32 d0, [y4];"""
    np.testing.assert_array_equal(evaluate(code, THREADS * 3)[0], THREADS * 3)


def test_generic_addresses_find_their_space():
    code = """mov.u64 y0, shared; cvta.shared.u64 y1, y0;
    mul.wide.u32 y2, tid, 4; add.u64 y1, y1, y2; st.u32 [y1], a0;
    cvta.to.shared.u64 y3, y1; cvt.u32.u64 x0, y3; ld.shared.u32 d0, [x0];
    isspacep.shared p0, y1; selp.u32 d1, 1, 0, p0;"""
    got = evaluate(code, THREADS, results=("u4", "u4"), shared_bytes=256)
    np.testing.assert_array_equal(got[0], THREADS)
    assert got[1].all()


def test_constants_are_read():
    text = """.version 8.0
.target sm_80
.address_size 64
.const .align 4 .b8 table[8] = {1, 2, 3, 4, 250, 0, 0, 255};
.visible .entry read(.param .u64 out) {
    .reg .b64 %rd<4>; .reg .b32 %r<4>;
    ld.param.u64 %rd0, [out]; mov.u64 %rd1, table;
    ld.const.u32 %r0, [%rd1]; ld.const.u32 %r1, [table+4];
    st.global.v2.u32 [%rd0], {%r0, %r1}; ret; }"""
    out = np.zeros(2, np.uint32)
    params = np.uint64(out.ctypes.data).tobytes()
    Interpreter(text).launch("read", (1, 1, 1), (1, 1, 1), params, allocations=[out])
    assert out.tolist() == [0x04030201, 0xFF0000FA]


@pytest.mark.parametrize(
    ("access", "message"),
    [
        ("ld.shared.u32 d0, [x9+64];", r"bytes 64..67 of 64 bytes of shared memory: ld.shared"),
        ("ld.shared.u32 d0, [x9+-4];", r"of 64 bytes of shared memory"),
        ("ld.shared.v4.u32 {d0, x0, x1, x2}, [x9+56];", r"misaligned access to shared"),
        ("st.shared.u16 [x9+1], h0;", r"misaligned access to shared memory: st.shared.u16"),
        ("ld.global.u32 d0, [%address0+4];", r"at byte 256 of an allocation of 256: ld.global"),
        ("st.global.u32 [%address0+-4], a0;", r"1 threads access 4 bytes of global memory"),
        ("ld.global.u32 d0, [%address0+2];", r"misaligned access to global memory"),
        ("ld.global.u32 d0, [64];", r"in front of every allocation"),
        ("cp.async.cg.shared.global [x9], [%address0+16], 16;", r"misaligned access to global"),
        ("cp.async.ca.shared.global [x9+64], [%address0], 4;", r"bytes 64..67 of 64 bytes"),
        ("cp.async.ca.shared.global [x9], [%address0+4], 4;", r"at byte 256 of an allocation"),
        (
            "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {d0}, [x9+8];",
            r"misaligned access to shared memory: ldmatrix",
        ),
    ],
)
def test_access_outside_is_reported(access: str, message: str):
    code = f"mov.u32 d0, 0; mov.u32 x9, shared; {access}"
    with pytest.raises(MemoryFault, match=message):
        evaluate(code, THREADS, shared_bytes=64)


def test_thread_outside_is_found_although_others_are_inside():
    """One thread of many reads another array than the rest, and beyond its end."""
    code = """setp.eq.u32 p0, tid, 63; selp.b64 y0, %address1, %address0, p0;
    @p0 add.u64 y0, y0, 4; ld.global.u32 d0, [y0];"""
    with pytest.raises(MemoryFault, match="1 threads access 4 bytes"):
        evaluate(code, THREADS, THREADS + 1)


def test_threads_may_read_several_arrays_at_once():
    code = """setp.lt.u32 p0, tid, 7; selp.b64 y0, %address1, %address0, p0;
    ld.global.u32 d0, [y0];"""
    other = THREADS + 1000
    got = evaluate(code, THREADS, other)[0]
    np.testing.assert_array_equal(got, np.where(THREADS < 7, other, THREADS))


def test_threads_under_a_guard_may_have_any_address():
    code = """mov.u64 y0, %address0; setp.lt.u32 p0, tid, 40; @!p0 mov.u64 y0, 3; mov.u32 d0, 5;
    @p0 ld.global.u32 d0, [y0]; @p0 st.global.u32 [y0], d0;"""
    got = evaluate(code, THREADS)[0]
    np.testing.assert_array_equal(got, np.where(THREADS < 40, THREADS, 5))


ATOMICS = {
    "add.u32": lambda old, a: (old + a) % 2**32,
    "min.s32": lambda old, a: min(old, a),
    "max.u32": max,
    "and.b32": lambda old, a: old & a,
    "or.b32": lambda old, a: old | a,
    "xor.b32": lambda old, a: old ^ a,
    "exch.b32": lambda old, a: a,
    "inc.u32": lambda old, a: 0 if old >= a else old + 1,
    "dec.u32": lambda old, a: a if old == 0 or old > a else old - 1,
}


@pytest.mark.parametrize("name", ATOMICS)
def test_threads_of_one_address_take_turns(name: str):
    values = np.random.default_rng(1).integers(0, 50, 64, dtype=np.uint32)
    code = f"""and.b32 x0, tid, 3; shl.b32 x0, x0, 2; mov.u32 x9, shared; add.u32 x9, x9, x0;
    setp.lt.u32 p0, tid, 4; @p0 st.shared.u32 [x9], 9; bar.sync 0;
    atom.shared.{name} d0, [x9], a0; bar.sync 0; ld.shared.u32 d1, [x9];"""
    old, last = evaluate(code, values, results=("u4", "u4"), shared_bytes=16)
    for place in range(4):
        state = 9
        for thread in range(place, 64, 4):
            assert old[thread] == state
            state = ATOMICS[name](state, int(values[thread]))
        assert set(last[place::4]) == {state}


def test_sum_without_a_result_and_comparison():
    code = """mov.u32 x9, shared; setp.eq.u32 p0, tid, 0; @p0 st.shared.u32 [x9], 0;
    @p0 st.shared.u32 [x9+4], 0; bar.sync 0; red.shared.add.u32 [x9], a0;
    atom.shared.cas.b32 d0, [x9+4], a0, 77; bar.sync 0; ld.shared.v2.u32 {d1, d2}, [x9];"""
    old, total, swapped = evaluate(code, THREADS, results=("u4",) * 3, shared_bytes=8)
    assert set(total) == {sum(range(64))}
    assert set(swapped) == {77}
    assert old.tolist() == [0] + [77] * 63


@pytest.mark.parametrize(
    "instruction",
    [
        "wgmma.fence.sync.aligned;",
        "add.cc.u32 d0, a0, a0;",
        "bar.red.popc.u32 d0, 0, p0;",
        "mov.u32 d0, %clock;",
        "cvt.rn.satfinite.e4m3x2.f32 h0, f0, f1;",
        "ld.shared::cluster.u32 d0, [x0];",
    ],
)
def test_what_is_not_interpreted_is_refused_with_its_text(instruction: str):
    with pytest.raises(Unsupported, match=re.escape(" ".join(instruction.rstrip(";").split()))):
        evaluate(f"mov.u32 d0, 0; {instruction}", THREADS)

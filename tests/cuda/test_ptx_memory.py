"""Memory of the PTX interpreter: what must not be touched, and who takes turns.

That what is stored is loaded shows wherever kernels run: test_ptx_compiled.py.
"""

import re

import numpy as np
import pytest

from tests.cuda.handwritten import evaluate
from tests.cuda.ptx.errors import MemoryFault, Unsupported

THREADS = np.arange(64, dtype=np.uint32)


def test_shared_memory_that_was_not_written_is_nan():
    code = "mov.u32 x9, shared; ld.shared.f32 d0, [x9];"
    assert np.isnan(evaluate(code, THREADS, results=("f4",), shared_bytes=4)[0]).all()


def test_generic_addresses_find_their_space():
    code = """mov.u64 y0, shared; cvta.shared.u64 y1, y0;
    mul.wide.u32 y2, tid, 4; add.u64 y1, y1, y2; st.u32 [y1], a0;
    cvta.to.shared.u64 y3, y1; cvt.u32.u64 x0, y3; ld.shared.u32 d0, [x0];"""
    np.testing.assert_array_equal(evaluate(code, THREADS, shared_bytes=256)[0], THREADS)


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


ATOMICS = {"add.u32": lambda old, a: old + a, "min.s32": min, "max.u32": max}


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

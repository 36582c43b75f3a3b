"""The order in which the PTX interpreter runs threads: they meet again, or it says who does not."""

import numpy as np
import pytest

from tests.cuda.handwritten import evaluate
from tests.cuda.ptx import interpreter, scheduler
from tests.cuda.ptx.errors import Divergence, Runaway

THREADS = np.arange(96, dtype=np.uint32)


def test_loops_of_different_lengths_end_for_each_thread():
    code = """mov.u32 d0, 0; mov.u32 x0, a0;
    loop: setp.eq.u32 p0, x0, 0; @p0 bra done; add.u32 d0, d0, x0; sub.u32 x0, x0, 1; bra loop;
    done: add.u32 d0, d0, 1;"""
    np.testing.assert_array_equal(evaluate(code, THREADS)[0], THREADS * (THREADS + 1) // 2 + 1)


def test_barriers_in_a_loop_hold_for_each_block():
    """Each round passes a number on to the next thread; blocks do a different number of rounds."""
    code = """mov.u32 x9, shared; shl.b32 x0, tid, 2; add.u32 x1, x9, x0; mov.u32 d0, a0;
    add.u32 x2, tid, 1; rem.u32 x2, x2, ntid; shl.b32 x2, x2, 2; add.u32 x2, x9, x2;
    add.u32 x3, ctaid, 1;
    round: st.shared.u32 [x1], d0; bar.sync 0; ld.shared.u32 d0, [x2]; bar.sync 0;
    sub.u32 x3, x3, 1; setp.ne.u32 p0, x3, 0; @p0 bra round;"""
    got = evaluate(code, THREADS, threads=24, shared_bytes=96)[0].reshape(4, 24)
    for block in range(4):
        expected = block * 24 + (np.arange(24) + block + 1) % 24
        np.testing.assert_array_equal(got[block], expected)


def test_blocks_that_end_early_do_not_disturb_the_others():
    code = """mov.u32 d0, a0; st.global.u32 [%address1], d0; and.b32 x0, ctaid, 3;
    setp.ne.u32 p0, x0, 1; @p0 ret; mov.u32 x9, shared; shl.b32 x1, tid, 2; add.u32 x1, x1, x9;
    st.shared.u32 [x1], a0; bar.sync 0; ld.shared.u32 d0, [x9]; add.u32 d0, d0, 1;"""
    got = evaluate(code, THREADS, threads=8, shared_bytes=32)[0]
    block = THREADS // 8
    np.testing.assert_array_equal(got, np.where(block % 4 == 1, block * 8 + 1, THREADS))


def test_many_blocks_are_run_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interpreter, "MAX_LANES", 64)
    got = evaluate("add.u32 d0, a0, ctaid;", THREADS, threads=4)[0]
    np.testing.assert_array_equal(got, THREADS + THREADS // 4)


@pytest.mark.parametrize("threads", [1, 7, 33, 48])
def test_block_need_not_be_whole_warps(threads: int):
    a = np.arange(3 * threads, dtype=np.uint32)
    code = """mov.u32 x9, shared; shl.b32 x0, tid, 2; add.u32 x1, x9, x0; st.shared.u32 [x1], a0;
    bar.sync 0; sub.u32 x2, ntid, 1; sub.u32 x2, x2, tid; shl.b32 x2, x2, 2; add.u32 x2, x2, x9;
    ld.shared.u32 d0, [x2]; shfl.sync.bfly.b32 d1, a0, 0, 31, -1;"""
    got, same = evaluate(code, a, results=("u4", "u4"), threads=threads, shared_bytes=4 * threads)
    np.testing.assert_array_equal(got.reshape(3, -1), a.reshape(3, -1)[:, ::-1])
    np.testing.assert_array_equal(same, a)


def test_barrier_that_some_threads_leave_out_is_reported():
    code = "mov.u32 d0, 0; setp.lt.u32 p0, tid, 32; @p0 bra done; bar.sync 0; done: bar.sync 0;"
    with pytest.raises(Divergence, match="different barriers"):
        evaluate(code, THREADS)


def test_barrier_after_some_threads_have_ended_is_reported():
    code = "mov.u32 d0, 0; setp.lt.u32 p0, tid, 32; @p0 ret; bar.sync 0;"
    with pytest.raises(Divergence, match="some of its threads have ended"):
        evaluate(code, THREADS)


def test_threads_of_half_a_warp_exchange_among_themselves():
    code = """and.b32 x0, thread, 16; setp.eq.u32 p0, x0, 0; mov.u32 d0, 0;
    @p0 bra first;
    shfl.sync.bfly.b32 d0, a0, 1, 31, 0xffff0000; bra done;
    first: shfl.sync.bfly.b32 d0, a0, 2, 31, 0x0000ffff;
    done: bar.warp.sync -1;"""
    expected = np.where(THREADS % 32 < 16, THREADS ^ 2, THREADS ^ 1)
    np.testing.assert_array_equal(evaluate(code, THREADS)[0], expected)


def test_lanes_wait_for_the_members_that_come_later():
    """The odd lanes arrive over a detour that lies behind the instruction."""
    code = """and.b32 x0, thread, 1; setp.eq.u32 p0, x0, 1; mov.u32 x1, a0;
    @p0 bra detour;
    meet: shfl.sync.bfly.b32 d0, x1, 1, 31, -1; bra done;
    detour: add.u32 x1, x1, 1; bra meet;
    done: mov.u32 x2, 0;"""
    expected = (THREADS + (THREADS & 1))[THREADS ^ 1]
    np.testing.assert_array_equal(evaluate(code, THREADS)[0], expected)


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
        evaluate(code, THREADS)


def test_barrier_within_a_warp_that_parts_is_reported():
    code = """mov.u32 d0, 0; setp.lt.u32 p0, tid, 16; @p0 bra other;
    shfl.sync.idx.b32 d0, a0, 0, 31, -1; bar.sync 0; bra done; other: bar.sync 0; done:"""
    with pytest.raises(Divergence, match="wait for the other members"):
        evaluate(code, THREADS)


def test_kernel_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduler, "MAX_RUNS", 1000)
    with pytest.raises(Runaway, match="does not end"):
        evaluate("mov.u32 d0, 0; forever: bra forever;", THREADS)

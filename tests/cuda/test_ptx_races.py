"""Order between accesses to shared memory, and asynchronous copies."""

import numpy as np
import pytest

from tests.cuda.handwritten import evaluate
from tests.cuda.ptx.errors import Race
from tests.cuda.ptx.machine import Checks

THREADS = np.arange(64, dtype=np.uint32)
RACES = Checks(races=True)
LATE = Checks(late_copies=True)
SETUP = """mov.u32 x9, shared; shl.b32 x0, tid, 2; add.u32 x1, x9, x0; mov.u32 d0, 0;
    xor.b32 x2, tid, {other}; shl.b32 x2, x2, 2; add.u32 x2, x2, x9; st.shared.u32 [x1], a0;"""


def run(code: str, *, other: int = 32, checks: Checks = RACES) -> np.ndarray:
    return evaluate(SETUP.format(other=other) + code, THREADS, shared_bytes=256, checks=checks)[0]


def test_barrier_orders_accesses_of_a_block():
    got = run("bar.sync 0; ld.shared.u32 d0, [x2]; bar.sync 0; st.shared.u32 [x1], d0;")
    np.testing.assert_array_equal(got, THREADS ^ 32)


def test_read_of_what_another_thread_has_just_written_is_a_race():
    with pytest.raises(Race, match=r"Thread 0 reads what was written by thread 32.*byte 128"):
        run("ld.shared.u32 d0, [x2];")


def test_write_to_what_another_thread_has_just_read_is_a_race():
    with pytest.raises(Race, match="writes what was read by"):
        run("bar.sync 0; ld.shared.u32 d0, [x2]; st.shared.u32 [x1], a0;")


def test_two_writes_are_a_race():
    with pytest.raises(Race, match="writes what was written by"):
        run("st.shared.u32 [x2], a0;")


def test_writes_of_one_instruction_to_one_place_are_a_race():
    with pytest.raises(Race, match="at the same time as"):
        run("bar.sync 0; st.shared.u32 [x9], a0;")


def test_neighbours_in_one_word_are_no_race():
    code = """mov.u32 x9, shared; shl.b32 x0, tid, 1; add.u32 x1, x9, x0; cvt.u16.u32 h0, a0;
    st.shared.u16 [x1], h0; bar.sync 0; ld.shared.u16 d0, [x1];"""
    got = evaluate(code, THREADS, shared_bytes=128, checks=RACES)[0]
    np.testing.assert_array_equal(got, THREADS)


ADD = "mov.u32 x9, shared; red.shared.add.u32 [x9], a0; mov.u32 d0, 0;"


def test_atomic_sums_are_no_race_among_themselves():
    code = "mov.u32 x9, shared; setp.eq.u32 p0, tid, 5; @p0 st.shared.u32 [x9], 0; bar.sync 0;"
    code += f"{ADD} {ADD} bar.sync 0; ld.shared.u32 d0, [x9];"
    got = evaluate(code, THREADS, shared_bytes=4, checks=RACES)[0]
    assert set(got) == {2 * sum(range(64))}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (f"{ADD} ld.shared.u32 d0, [x9];", "reads what was written by several threads"),
        (f"{ADD} setp.eq.u32 p0, tid, 0; @p0 st.shared.u32 [x9], 0;", "writes what was written"),
        (f"mov.u32 x9, shared; ld.shared.u32 x0, [x9]; {ADD}", "writes what was read by"),
        (
            f"mov.u32 x9, shared; setp.eq.u32 p0, tid, 5; @p0 st.shared.u32 [x9], 0; {ADD}",
            "updates what was written by thread 5",
        ),
    ],
)
def test_atomic_sum_beside_other_accesses_is_a_race(code: str, message: str):
    with pytest.raises(Race, match=message):
        evaluate(code, THREADS, shared_bytes=4, checks=RACES)


def test_barrier_of_the_warp_orders_its_own_threads():
    got = run("bar.warp.sync -1; ld.shared.u32 d0, [x2];", other=1)
    np.testing.assert_array_equal(got, THREADS ^ 1)
    with pytest.raises(Race):
        run("ld.shared.u32 d0, [x2];", other=1)


def test_barrier_of_the_warp_does_not_order_other_warps():
    with pytest.raises(Race):
        run("bar.warp.sync -1; ld.shared.u32 d0, [x2];", other=32)


def test_readers_of_two_warps_are_both_remembered():
    """Thread 32's reader is the last one; thread 0 was there first."""
    code = """bar.sync 0; ld.shared.u32 d0, [x9]; bar.warp.sync -1; setp.eq.u32 p0, tid, 32;
    @p0 st.shared.u32 [x9], a0;"""
    with pytest.raises(Race, match="Thread 32 writes what was read by thread 0"):
        run(code)


def test_blocks_do_not_disturb_each_other():
    code = SETUP.format(other=1) + "bar.sync 0; ld.shared.u32 d0, [x2];"
    got = evaluate(code, THREADS, threads=16, shared_bytes=64, checks=RACES)[0]
    np.testing.assert_array_equal(got, THREADS ^ 1)


COPY = """mov.u32 x9, shared; shl.b32 x0, tid, 2; add.u32 x1, x9, x0; mov.u32 d0, 0;
    xor.b32 x2, tid, 1; shl.b32 x2, x2, 2; add.u32 x2, x2, x9;
    cp.async.ca.shared.global [x1], [%address0], 4{filled}; cp.async.commit_group;"""


def copy(code: str, checks: Checks, filled: str = "") -> np.ndarray:
    text = COPY.format(filled=filled) + code
    return evaluate(text, THREADS + 5, shared_bytes=512, checks=checks)[0]


WAITED = "cp.async.wait_group 0; bar.sync 0; ld.shared.u32 d0, [x2];"


@pytest.mark.parametrize("races", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("wait", ["cp.async.wait_group 0;", "cp.async.wait_all;"])
def test_copy_is_there_after_the_wait(wait: str, late: bool, races: bool):
    code = f"{wait} bar.sync 0; ld.shared.u32 d0, [x2];"
    got = copy(code, Checks(races=races, late_copies=late))
    np.testing.assert_array_equal(got, (THREADS ^ 1) + 5)


def test_late_copy_is_not_there_before_the_wait():
    got = copy("bar.sync 0; ld.shared.u32 d0, [x2];", LATE)
    assert (got == 0xFFFFFFFF).all()
    assert (copy("bar.sync 0; ld.shared.u32 d0, [x2];", Checks()) == (THREADS ^ 1) + 5).all()


def test_only_the_newest_groups_may_be_open():
    second = """add.u32 x3, x1, 256; cp.async.ca.shared.global [x3], [%address0], 4;
    cp.async.commit_group; cp.async.wait_group {open}; bar.sync 0;
    ld.shared.u32 d0, [x2]; ld.shared.u32 x4, [x2+256]; sub.u32 d0, x4, d0;"""
    ended = copy(second.format(open=0), LATE)
    one_open = copy(second.format(open=1), LATE)
    assert (ended == 0).all()
    np.testing.assert_array_equal(one_open, 0xFFFFFFFF - (THREADS ^ 1) - 5)


def test_rest_of_a_copy_is_zero():
    assert (copy(WAITED, LATE, ", 0") == 0).all()
    assert (copy(WAITED, Checks(), ", 0") == 0).all()
    np.testing.assert_array_equal(copy(WAITED, LATE, ", 1"), (THREADS ^ 1) + 5)
    filled = evaluate(
        COPY.format(filled=", 2") + WAITED, THREADS + (9 << 16), shared_bytes=512, checks=LATE
    )
    np.testing.assert_array_equal(filled[0], THREADS ^ 1)


def test_copy_of_nothing_may_have_any_address():
    code = COPY.replace("[%address0]", "[64]").format(filled=", 0") + WAITED
    assert (evaluate(code, THREADS, shared_bytes=512)[0] == 0).all()


def test_target_of_a_copy_is_not_touched_before_the_wait():
    for access in ("ld.shared.u32 d0, [x1];", "st.shared.u32 [x1], a0;"):
        with pytest.raises(Race, match="before it was waited for"):
            copy("bar.sync 0;" + access, RACES)


def test_wait_of_a_thread_does_not_order_the_others():
    with pytest.raises(Race, match="reads what was written by"):
        copy("cp.async.wait_group 0; ld.shared.u32 d0, [x2];", RACES)


def test_copy_to_what_others_still_read_is_a_race():
    code = """cp.async.wait_group 0; bar.sync 0; ld.shared.u32 d0, [x2];
    cp.async.ca.shared.global [x1], [%address0], 4;"""
    with pytest.raises(Race, match="writes what was read by"):
        copy(code, RACES)

"""Order between accesses to shared memory, and asynchronous copies."""

import numpy as np
import pytest

from tests.cuda.handwritten import evaluate
from tests.cuda.ptx.errors import Race
from tests.cuda.ptx.machine import Checks

THREADS = np.arange(64, dtype=np.uint32)
RACES = Checks(races=True)
LATE = Checks(late_copies=True)
# Each thread stores its a0 at [x1]; what another thread stores is at [x2].
STORED = """mov.u32 x9, shared; shl.b32 x0, tid, 2; add.u32 x1, x9, x0; mov.u32 d0, 0;
    xor.b32 x2, tid, {other}; shl.b32 x2, x2, 2; add.u32 x2, x2, x9; st.shared.u32 [x1], a0;"""
IN_OTHER_WARP, IN_SAME_WARP = STORED.format(other=32), STORED.format(other=1)
ADD = "mov.u32 x9, shared; atom.shared.add.u32 x5, [x9], a0; mov.u32 d0, 0;"
FIFTH_STORES = "mov.u32 x9, shared; setp.eq.u32 p0, tid, 5; @p0 st.shared.u32 [x9], 0;"
# Each thread copies its a0 to [x1]; what its neighbour copies is at [x2].
COPY = """mov.u32 x9, shared; shl.b32 x0, tid, 2; add.u32 x1, x9, x0; mov.u32 d0, 0;
    xor.b32 x2, tid, 1; shl.b32 x2, x2, 2; add.u32 x2, x2, x9;
    cp.async.ca.shared.global [x1], [%address0], 4{filled}; cp.async.commit_group;"""
COPIED = COPY.format(filled="")
READ = "ld.shared.u32 d0, [x2];"


def run(code: str, checks: Checks = RACES, *, threads: int | None = None) -> np.ndarray:
    return evaluate(code, THREADS, threads=threads, shared_bytes=512, checks=checks)[0]


def test_neighbours_in_one_word_are_no_race():
    code = """mov.u32 x9, shared; shl.b32 x0, tid, 1; add.u32 x1, x9, x0; cvt.u16.u32 h0, a0;
    st.shared.u16 [x1], h0; bar.sync 0; ld.shared.u16 d0, [x1];"""
    np.testing.assert_array_equal(run(code), THREADS)


def test_barriers_order_accesses_of_a_block_and_of_a_warp():
    code = f"{IN_OTHER_WARP} bar.sync 0; {READ} bar.sync 0; st.shared.u32 [x1], d0;"
    np.testing.assert_array_equal(run(code), THREADS ^ 32)
    np.testing.assert_array_equal(run(f"{IN_SAME_WARP} bar.warp.sync -1; {READ}"), THREADS ^ 1)


def test_blocks_do_not_disturb_each_other():
    got = run(f"{IN_SAME_WARP} bar.sync 0; {READ}", threads=16)
    np.testing.assert_array_equal(got, THREADS ^ 1)


def test_atomic_sums_are_no_race_among_themselves():
    got = run(f"{FIFTH_STORES} bar.sync 0; {ADD} {ADD} bar.sync 0; ld.shared.u32 d0, [x9];")
    assert set(got) == {2 * sum(range(64))}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (f"{IN_OTHER_WARP} {READ}", r"Thread 0 reads what was written by thread 32.*byte 128"),
        (f"{IN_OTHER_WARP} bar.sync 0; {READ} st.shared.u32 [x1], a0;", "writes what was read by"),
        (f"{IN_OTHER_WARP} st.shared.u32 [x2], a0;", "writes what was written by"),
        (f"{IN_OTHER_WARP} bar.sync 0; st.shared.u32 [x9], a0;", "at the same time as"),
        (f"{IN_SAME_WARP} {READ}", "reads what was written by thread 1,"),
        (f"{IN_OTHER_WARP} bar.warp.sync -1; {READ}", "reads what was written by thread 32"),
        # Thread 32's reader is the last one; thread 0 was there first.
        (
            f"{IN_OTHER_WARP} bar.sync 0; ld.shared.u32 d0, [x9]; bar.warp.sync -1;"
            "setp.eq.u32 p0, tid, 32; @p0 st.shared.u32 [x9], a0;",
            "Thread 32 writes what was read by thread 0",
        ),
        (f"{ADD} ld.shared.u32 d0, [x9];", "reads what was written by several threads"),
        (f"{ADD} setp.eq.u32 p0, tid, 0; @p0 st.shared.u32 [x9], 0;", "writes what was written"),
        (f"mov.u32 x9, shared; ld.shared.u32 x0, [x9]; {ADD}", "writes what was read by"),
        (f"{FIFTH_STORES} {ADD}", "updates what was written by thread 5"),
        (f"{COPIED} bar.sync 0; ld.shared.u32 d0, [x1];", "before it was waited for"),
        (f"{COPIED} bar.sync 0; st.shared.u32 [x1], a0;", "before it was waited for"),
        (f"{COPIED} cp.async.wait_group 0; {READ}", "reads what was written by"),
        (
            f"{COPIED} cp.async.wait_group 0; bar.sync 0; {READ}"
            "cp.async.ca.shared.global [x1], [%address0], 4;",
            "writes what was read by",
        ),
    ],
)
def test_race_is_reported(code: str, message: str):
    with pytest.raises(Race, match=message):
        run(code)


WAITED = f"cp.async.wait_group 0; bar.sync 0; {READ}"


@pytest.mark.parametrize("races", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_copy_is_there_after_the_wait(late: bool, races: bool):
    got = run(COPIED + WAITED, Checks(races=races, late_copies=late))
    np.testing.assert_array_equal(got, THREADS ^ 1)


def test_late_copy_is_not_there_before_the_wait():
    code = f"{COPIED} bar.sync 0; {READ}"
    assert (run(code, LATE) == 0xFFFFFFFF).all()
    np.testing.assert_array_equal(run(code, Checks()), THREADS ^ 1)


def test_only_the_newest_groups_may_be_open():
    second = """add.u32 x3, x1, 256; cp.async.ca.shared.global [x3], [%address0], 4;
    cp.async.commit_group; cp.async.wait_group {open}; bar.sync 0;
    ld.shared.u32 d0, [x2]; ld.shared.u32 x4, [x2+256]; sub.u32 d0, x4, d0;"""
    assert (run(COPIED + second.format(open=0), LATE) == 0).all()
    one_open = run(COPIED + second.format(open=1), LATE)
    np.testing.assert_array_equal(one_open, 0xFFFFFFFF - (THREADS ^ 1))


@pytest.mark.parametrize("checks", [Checks(), LATE])
def test_rest_of_a_copy_is_zero(checks: Checks):
    code = COPY.format(filled=", 2") + WAITED
    got = evaluate(code, THREADS + (9 << 16), shared_bytes=512, checks=checks)[0]
    np.testing.assert_array_equal(got, THREADS ^ 1)
    nothing = COPY.replace("[%address0]", "[64]").format(filled=", 0")  # from any address
    assert (run(nothing + WAITED, checks) == 0).all()

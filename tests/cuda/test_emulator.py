"""The emulator finds mistakes of kernels, each by the means that are meant for it.

Each mistake has a twin without it, which nothing may report.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cuda import abi, conformance
from tests.cuda.conformance import PRIMITIVES
from tests.cuda.faults import fault_names, run_fault
from tests.cuda.libraries import ADDRESS, ROOT, THREAD, Emulator, Variant, build
from tests.cuda.processes import environment_of
from tests.nightly import nightly

PLACE = r"cuda/emu/faults\.cu:\d+"
REPORTED = {
    "divergent_shuffle": "lanes of a warp diverge: thread 0 is in __shfl_sync at PLACE, "
    "this one in __shfl_sync at PLACE",
    "lane_exited_before": "__ballot_sync at PLACE: the mask names lanes that have exited",
    "lane_exits_while_others_wait": "threads wait for one that has exited: "
    "32-62 in __shfl_xor_sync at PLACE; exited: 0-31, 63",
    "barriers_in_branches": "__syncthreads is reached at different places: "
    "0-31 in __syncthreads at PLACE; 32-63 in __syncthreads at PLACE",
    "wait_for_each_other": "threads wait for each other: "
    "0-32 in __syncthreads at PLACE; 33-63 in __syncwarp at PLACE",
    "shuffle_reads_unnamed_lane": "__shfl_xor_sync at PLACE: lane 0 reads lane 16, "
    "which is not in the mask",
    "shared_memory_too_short": "a thread wrote behind the shared memory of its block, "
    "which has 256 bytes",
    "copy_behind_shared_memory": "copy_async_16 at PLACE: the target is not in shared memory",
    "matrix_row_misaligned": "load_matrices_x2 at PLACE: the row's address is not "
    "a multiple of 16 within shared memory",
}
WRONG_IN_SOME_ORDER = (
    "missing_barrier",
    "overwritten_too_early",
    "copy_not_waited_for",
    "shared_memory_not_written",
)
RACES = (
    "missing_barrier",
    "missing_warp_barrier",
    "overwritten_too_early",
    "copy_not_waited_for",
    "blocks_without_atomics",
    "blocks_without_fence",
)
BANKS = ("matrix_rows_in_one_bank", "words_in_one_bank")  # the latter: test_bank_conflicts.py
SEEDS = range(20)


def test_every_mistake_has_a_test(emulator: Emulator):
    tested = {*REPORTED, *WRONG_IN_SOME_ORDER, *RACES, *BANKS}
    assert tested == set(fault_names(emulator))


def _assert_reported(emulator: Emulator, name: str) -> None:
    with emulator.configured():
        _, error = run_fault(emulator, name, correct=False)
    assert REPORTED[name] in re.sub(PLACE, "PLACE", error)


@pytest.mark.parametrize("name", REPORTED)
def test_mistake_is_reported(emulator: Emulator, name: str):
    _assert_reported(emulator, name)


@pytest.mark.parametrize("name", WRONG_IN_SOME_ORDER)
def test_mistake_changes_a_result_in_some_order(emulator: Emulator, name: str):
    with emulator.configured():
        right, _ = run_fault(emulator, name, correct=True)
    got = []
    for seed in SEEDS:
        with emulator.configured(seed=seed, late_copies=seed % 2):
            got.append(run_fault(emulator, name, correct=False)[0])
    assert any(item != right for item in got)


def test_bank_conflicts_are_counted(emulator: Emulator):
    for correct in (True, False):
        with emulator.configured():
            run_fault(emulator, "matrix_rows_in_one_bank", correct=correct)
            assert (emulator.counts().matrix_load_conflicts == 0) is correct


def test_kernels_without_mistake_are_right_in_any_order(emulator: Emulator):
    for name in fault_names(emulator):
        results = []
        for seed in SEEDS:
            with emulator.configured(seed=seed, late_copies=seed % 2):
                got, error = run_fault(emulator, name, correct=True)
            assert error == ""
            results.append(got)
        assert all(got == results[0] for got in results), name


def test_a_failed_launch_leaves_nothing_behind(emulator: Emulator):
    with emulator.configured():
        right, _ = run_fault(emulator, "missing_barrier", correct=True)
        for name in REPORTED:
            run_fault(emulator, name, correct=False)
    with emulator.configured():
        assert run_fault(emulator, "missing_barrier", correct=True) == (right, "")


def library_without_assembly() -> Path:
    definitions = ("-DCMAKE_CXX_FLAGS=-DMOH_UCONTEXT", "-DMOH_CUDA_KERNELS=OFF")
    return build(Variant("ucontext"), definitions=definitions)


@nightly  # a build of its own, like those below
def test_fibers_work_without_assembly():
    """As on processors that the emulator has no assembly for."""
    emulator = Emulator(library_without_assembly())
    for name in PRIMITIVES:
        words = conformance.inputs(name)
        with emulator.configured(seed=1):
            got = conformance.run(emulator.library, name, words)
        assert conformance.find_difference(name, words, got) is None
    for name in REPORTED:
        _assert_reported(emulator, name)


def test_hook_runs_instead_of_kernels(emulator: Emulator):
    calls = []

    def hook(kernel: bytes, grid, block, shared_bytes: int, params: int, params_bytes: int) -> int:
        calls.append((kernel.decode(), grid[:3], block[:3], shared_bytes, params_bytes))
        return 719  # cudaErrorLaunchFailure

    words, out = np.zeros((3, 128), np.uint32), np.zeros((3, 128), np.uint32)
    called_back = abi.LaunchHook(hook)
    emulator.library.moh_emulator_set_launch_hook(called_back)
    try:
        status = emulator.library.moh_cuda_conformance(
            b"syncthreads", words.ctypes.data, words.nbytes, out.ctypes.data, out.nbytes, None
        )
    finally:
        emulator.library.moh_emulator_set_launch_hook(None)
    ((name, *rest),) = calls
    assert status == 719
    assert re.fullmatch(r"_ZN3moh4cuda11conformance18conformance_kernel.*7Barrier.*", name)
    assert rest == [[3, 1, 1], [128, 1, 1], 512, 16]


def _watch(variant: Variant, which: str, seed: int, *names: str) -> tuple[int, str]:
    library = build(variant)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.cuda.run_fault", str(library), which, str(seed), *names],
        cwd=ROOT,
        env=environment_of(variant),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout


@nightly
@pytest.mark.parametrize("name", RACES)
def test_race_is_found(emulator: Emulator, name: str):
    code, output = _watch(THREAD, "faulty", 0, name)
    assert code != 0
    assert "WARNING: ThreadSanitizer: data race" in output, output
    assert "faults.cu" in output, output


@nightly
@pytest.mark.parametrize("seed", [0, 1])
def test_no_race_is_found_without_mistake(emulator: Emulator, seed: int):
    assert _watch(THREAD, "correct", seed, *fault_names(emulator)) == (0, "")


@nightly
def test_access_beyond_shared_memory_is_found(emulator: Emulator):
    code, output = _watch(ADDRESS, "faulty", 0, "shared_memory_too_short")
    assert code != 0
    assert "AddressSanitizer" in output, output
    assert "faults.cu" in output, output


@nightly
def test_no_bad_access_is_found_without_mistake(emulator: Emulator):
    assert _watch(ADDRESS, "correct", 1, *fault_names(emulator)) == (0, "")

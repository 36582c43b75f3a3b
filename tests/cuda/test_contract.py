"""Every case of the ops on the CUDA kernels, as the emulator runs them: no GPU takes part.

In the order of the threads, then in random orders with copies that are made as late as they may be;
under sanitizers in a process of their own.
"""

from __future__ import annotations

import pytest

from moh_deploy.ops.cases import Case
from tests.cuda.drawn import cases_of_several_tiles, drawn_cases
from tests.cuda.kernels import Kernels, plans_of
from tests.cuda.libraries import ADDRESS, THREAD, Emulator, build
from tests.cuda.processes import run_cases
from tests.cuda.run_cases import CUDA_OPS
from tests.ops.cases import OP_CASES

SEEDS = (1, 2, 3)
DRAWS = 60

CASES = [case for op in CUDA_OPS for case in OP_CASES[op]]
DRAWN = [*cases_of_several_tiles(), *(case for op in CUDA_OPS for case in drawn_cases(op, DRAWS))]


def _assert_right(emulator: Emulator, case: Case, **options: int) -> None:
    """In every plan, without a bank conflict of a matrix load."""
    kernels = Kernels(emulator.library)
    for plan in plans_of(case):
        with emulator.configured(**options):
            problem = kernels.find_mismatch(case, plan)
            conflicts = emulator.counts().matrix_load_conflicts
        assert problem is None, f"plan {plan}: {problem}"
        assert conflicts == 0, f"plan {plan}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_is_right(emulator: Emulator, case: Case):
    _assert_right(emulator, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_is_right_in_any_order(emulator: Emulator, case: Case):
    for seed in SEEDS:
        _assert_right(emulator, case, seed=seed, late_copies=1)


@pytest.mark.parametrize("number", range(len(DRAWN)))
def test_drawn_case_is_right(emulator: Emulator, number: int):
    _assert_right(emulator, DRAWN[number], seed=number, late_copies=number % 2)


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_attention_is_right_on_any_device(emulator: Emulator, multiprocessors: int):
    for case in cases_of_several_tiles():
        _assert_right(emulator, case, multiprocessors=multiprocessors)


@pytest.mark.parametrize("op", CUDA_OPS)
def test_sanitizers_find_nothing(emulator: Emulator, op: str):
    verdict = run_cases(build(ADDRESS), ADDRESS, "--match", f"^{op}/", "--tiles")
    assert verdict.passed, verdict.output


@pytest.mark.parametrize("op", CUDA_OPS)
def test_threads_do_not_race(emulator: Emulator, op: str):
    verdict = run_cases(build(THREAD), THREAD, "--match", f"^{op}/", "--tiles", "--seeds", "1")
    assert verdict.passed, verdict.output

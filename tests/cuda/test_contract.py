"""Every case of the ops on the CUDA kernels, as the emulator runs them: no GPU takes part.

In the order of the threads, then in random orders with copies that are made as late as they may be;
under sanitizers in a process of their own.
"""

from collections.abc import Iterable
from functools import cache

import pytest
from _pytest.mark import ParameterSet

from moh_deploy.ops.cases import Case
from tests.cuda.drawn import cases_of_several_tiles, drawn_cases
from tests.cuda.kernels import Kernels, plans_of
from tests.cuda.libraries import ADDRESS, THREAD, Emulator, build
from tests.cuda.processes import run_cases
from tests.cuda.run_cases import CUDA_OPS
from tests.nightly import in_turn, nightly, nightly_if, sampled
from tests.ops.batches import Batch, assert_nothing_wrong, batches_of
from tests.ops.cases import OP_CASES

SEEDS = (1, 2, 3)
DRAWS = 60

BATCHES = batches_of(CUDA_OPS)
TILES = cases_of_several_tiles()


def _assert_right(emulator: Emulator, cases: Iterable[Case], **options: int) -> None:
    """In every plan, without a bank conflict of a matrix load."""
    kernels = Kernels(emulator.library)

    def problem_of(case: Case) -> str | None:
        problems = []
        for plan in plans_of(case):
            with emulator.configured(**options):
                problem = kernels.find_mismatch(case, plan)
                conflicts = emulator.counts().matrix_load_conflicts
            if problem is not None or conflicts:
                problems.append(f"plan {plan}, {conflicts} bank conflicts: {problem}")
        return "; ".join(problems) or None

    assert_nothing_wrong(cases, problem_of)


@nightly  # a push runs them in some other order
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_case_is_right(emulator: Emulator, batch: Batch):
    _assert_right(emulator, batch.cases)


def _without_attention(parameters: list[ParameterSet]) -> list[ParameterSet]:
    """A push runs some of attention's cases alone: all of one dtype would be half of the time."""
    return [
        pytest.param(
            *parameter.values,
            marks=(*parameter.marks, *nightly_if(parameter.values[0].op == "MoHAttention")),
        )
        for parameter in parameters
    ]


@pytest.mark.parametrize(("batch", "seed"), _without_attention(in_turn(BATCHES, SEEDS)), ids=str)
def test_case_is_right_in_any_order(emulator: Emulator, batch: Batch, seed: int):
    _assert_right(emulator, batch.cases, seed=seed, late_copies=1)


def test_some_attention_is_right_in_any_order(emulator: Emulator):
    """One in so many that its dtypes take turns."""
    _assert_right(emulator, OP_CASES["MoHAttention"][::16], seed=1, late_copies=1)


@sampled(12)
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(n, marks=nightly_if(n % 3 != 0))
        for n in range(len(TILES) + DRAWS * len(CUDA_OPS))
    ],
)
def test_drawn_case_is_right(emulator: Emulator, number: int):
    _assert_right(emulator, [_drawn()[number]], seed=number, late_copies=number % 2)


@cache
def _drawn() -> list[Case]:
    """Drawn by the first test that runs one, and not to name the tests."""
    return [*TILES, *(case for op in CUDA_OPS for case in drawn_cases(op, DRAWS))]


@nightly
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_attention_is_right_on_any_device(emulator: Emulator, multiprocessors: int):
    _assert_right(emulator, cases_of_several_tiles(), multiprocessors=multiprocessors)


@nightly
@pytest.mark.parametrize("op", CUDA_OPS)
def test_sanitizers_find_nothing(emulator: Emulator, op: str):
    verdict = run_cases(build(ADDRESS), ADDRESS, "--match", f"^{op}/", "--tiles")
    assert verdict.passed, verdict.output


@nightly
@pytest.mark.parametrize("op", CUDA_OPS)
def test_threads_do_not_race(emulator: Emulator, op: str):
    verdict = run_cases(build(THREAD), THREAD, "--match", f"^{op}/", "--tiles", "--seeds", "1")
    assert verdict.passed, verdict.output

"""Cases of the contract in batches: a test runs all cases of an op in one dtype, and names each of
them that fails."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case, find_mismatch
from moh_deploy.ops.spec import FLOAT_TYPES, Arrays
from tests.ops.cases import OP_CASES


@dataclass(frozen=True)
class Batch:
    """All cases of an op in one dtype."""

    op: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.op}/{self.dtype}"

    @property
    def cases(self) -> list[Case]:
        return [case for case in OP_CASES[self.op] if case.dtype == self.dtype]


def batches_of(ops: Iterable[str]) -> list[Batch]:
    return [Batch(op, dtype) for op in ops for dtype in FLOAT_TYPES]


BATCHES = batches_of(OPS)


def assert_outputs_right(cases: Iterable[Case], run: Callable[[Case], Arrays]) -> None:
    """Run every case, and fail with what is wrong with each output that is not the reference's."""
    assert_nothing_wrong(cases, lambda case: find_mismatch(case, run(case)))


def assert_nothing_wrong(cases: Iterable[Case], problem_of: Callable[[Case], str | None]) -> None:
    """Look at every case, and fail with all that is wrong; an exception is about its case alone."""
    problems = [problem for case in cases if (problem := _problem(case, problem_of)) is not None]
    assert not problems, "\n".join([f"{len(problems)} cases fail:", *problems])


def _problem(case: Case, problem_of: Callable[[Case], str | None]) -> str | None:
    try:
        problem = problem_of(case)
    except Exception as error:
        return f"{case}: {type(error).__name__}: {error}"
    return problem if problem is None or problem.startswith(str(case)) else f"{case}: {problem}"

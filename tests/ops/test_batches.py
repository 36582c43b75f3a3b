import numpy as np
import pytest

from moh_deploy.ops.cases import Case
from tests.ops import independent
from tests.ops.batches import BATCHES, Batch, assert_nothing_wrong, assert_outputs_right
from tests.ops.cases import ALL_CASES

ROUTER = Batch("MoHRouter", "float32")


def test_every_case_is_in_one_batch():
    batched = [str(case) for batch in BATCHES for case in batch.cases]
    assert sorted(batched) == sorted(map(str, ALL_CASES))


def test_every_failing_case_is_named_and_no_other():
    wrong = {str(case) for case in ROUTER.cases[1::2]}

    def run(case: Case) -> list[np.ndarray]:
        return [] if str(case) in wrong else independent.run(case)

    with pytest.raises(AssertionError, match=f"{len(wrong)} cases fail") as failed:
        assert_outputs_right(ROUTER.cases, run)
    _, *lines = str(failed.value).splitlines()
    assert {line.split(":")[0] for line in lines} == wrong


def test_an_exception_does_not_hide_the_cases_behind_it():
    first, second, *_ = ROUTER.cases

    def problem_of(case: Case) -> str | None:
        if case is second:
            return "is wrong"
        raise ValueError("no session")

    with pytest.raises(AssertionError) as failed:
        assert_nothing_wrong([first, second], problem_of)
    assert str(failed.value).splitlines()[1:] == [
        f"{first}: ValueError: no session",
        f"{second}: is wrong",
    ]

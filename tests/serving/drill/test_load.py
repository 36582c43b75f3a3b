from collections.abc import Mapping

import numpy as np
import pytest

from moh_deploy.errors import BackendError
from moh_deploy.serving.drill.targets import Load, LoadCase, ServerAnswer
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import TOLERANCES

X = {"x": np.ones((1, 2), np.float32)}
RIGHT, OTHER = ({"y": np.full((1, 2), value, np.float32)} for value in (1, 5))
CASE = LoadCase(X, {"kernels": (RIGHT,), "other": (OTHER,)})
RULE = TOLERANCES["float32"]


@pytest.mark.parametrize(
    ("outputs", "rung", "is_right"),
    [
        (RIGHT, "kernels", True),
        ({"y": RIGHT["y"] + np.float32(1e-6)}, "kernels", True),
        ({"y": RIGHT["y"] + np.float32(1e-3)}, "kernels", False),
        ({"y": np.full((1, 2), np.nan, np.float32)}, "kernels", False),
        ({"y": RIGHT["y"][:, :1]}, "kernels", False),
        ({}, "kernels", False),
        (OTHER, "other", True),
        (OTHER, "kernels", False),  # what another rung may answer, this one may not
        (OTHER, "", True),  # the server does not say which rung it was
    ],
)
def test_an_answer_is_right_by_the_rung_that_gave_it(
    outputs: dict[str, Array], rung: str, is_right: bool
):
    assert CASE.is_right(ServerAnswer(outputs, rung), RULE) == is_right


class TakingTurns:
    """A connection that answers so, over and over; None is a failure."""

    def __init__(self, *answers: ServerAnswer | None) -> None:
        self.answers = answers
        self.seen: list[float] = []

    def __call__(self, inputs: Mapping[str, Array]) -> ServerAnswer:
        answer = self.answers[len(self.seen) % len(self.answers)]
        self.seen.append(float(inputs["x"][0, 0]))
        if answer is None:
            raise BackendError("it failed.")
        return answer


def test_a_load_counts_right_wrong_and_failed_requests():
    ask = TakingTurns(ServerAnswer(RIGHT, "kernels"), ServerAnswer(OTHER, "kernels"), None)
    load = Load([ask], [CASE], RULE)
    asked = []
    while len(asked) < 6:
        asked += load.take()
    load.close()
    assert [item.outcome for item in asked[:6]] == ["right", "wrong", "failed"] * 2
    assert asked[2].error == "it failed."
    assert all(item.begun <= item.ended for item in asked)
    assert [item.rung for item in asked[:3]] == ["kernels", "kernels", ""]


def test_every_client_asks_all_cases_in_turn():
    ask = TakingTurns(ServerAnswer(RIGHT, "kernels"))
    cases = [LoadCase({"x": X["x"] * number}, CASE.right) for number in (1, 2, 3)]
    load = Load([ask], cases, RULE)
    while len(ask.seen) < 6:
        pass
    load.close()
    assert ask.seen[:6] == [1, 2, 3, 1, 2, 3]

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moh_deploy.serving import BatchAxis, Reply
from moh_deploy.serving.served_model import Tensors, answer_batch

AXIS = BatchAxis("batch")


class Doubling:
    """Doubles its input, refuses what is negative, and notes the samples of each run."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, ...]] = []

    def __call__(self, inputs: Tensors, sizes: Sequence[int] = ()) -> Reply:
        self.runs.append(tuple(sizes))
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return Reply({"y": inputs["x"] * 2}, "functions")


def answered(model: Doubling, axis: BatchAxis | None, *values: list[float]) -> list[object]:
    requests = [{"x": np.array(one)} for one in values]
    replies = answer_batch(model, axis, requests)
    return [
        str(one) if isinstance(one, Exception) else one.outputs["y"].tolist() for one in replies
    ]


def test_requests_are_answered_by_one_run_each_with_its_samples():
    model = Doubling()
    assert answered(model, AXIS, [1, 2], [3]) == [[2, 4], [6]]
    assert model.runs == [(2, 1)]


def test_reply_says_what_computed_it():
    (reply,) = answer_batch(Doubling(), AXIS, [{"x": np.array([1.0])}])
    assert isinstance(reply, Reply)
    assert reply.rung == "functions"


def test_where_a_batch_fails_each_request_runs_alone():
    model = Doubling()
    assert answered(model, AXIS, [1, 2], [-1], [3]) == [[2, 4], "negative", [6]]
    assert model.runs == [(2, 1, 1), (2,), (1,), (1,)]


def test_request_that_fails_alone_does_not_run_again():
    model = Doubling()
    assert answered(model, AXIS, [-1]) == ["negative"]
    assert model.runs == [(1,)]


def test_samples_that_were_mixed_are_an_error_of_each():
    def sums(inputs: Tensors, sizes: Sequence[int] = ()) -> Reply:
        return Reply({"y": inputs["x"][:1]}, "kernels")

    replies = list(answer_batch(sums, AXIS, [{"x": np.ones(2)}, {"x": np.ones(1)}]))
    assert "has 1 samples" in str(replies[0])
    assert isinstance(replies[1], Reply)


def test_without_an_axis_a_request_runs_as_it_is():
    model = Doubling()
    assert answered(model, None, [1, 2]) == [[2, 4]]
    assert model.runs == [()]

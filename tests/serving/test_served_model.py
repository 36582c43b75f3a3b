from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import PackageDir
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving import served_model as served_model_module
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.metrics import Family, Series
from moh_deploy.serving.served_model import (
    Reply,
    ServedModel,
    Tensors,
    answer_batch,
    cores,
    find_joining,
    open_served,
    served_variant,
)
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.source import ServedRun
from tests.handmade_package import WIDTH, vectors, write_package
from tests.nightly import sampled
from tests.serving.graphs import TABLE, write_lookup, write_mixing


class Noting:
    """An observer that keeps what it saw of every other run."""

    def __init__(self, inner: tuple[str, ...]) -> None:
        self.inner = inner
        self.runs: list[ServedRun] = []
        self.is_closed = False

    def wanted(self, dims: Mapping[str, int]) -> tuple[str, ...]:
        return self.inner if len(self.runs) % 2 == 0 else ()

    def saw(self, run: ServedRun) -> None:
        self.runs.append(run)

    def families(self) -> tuple[Family, ...]:
        return (Family("runs_total", "Runs.", "counter", (Series({}, len(self.runs)),)),)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def observer(package: OnnxPackage) -> Noting:
    return Noting(tuple(layer.gates for layer in package.manifest.layers))


@pytest.fixture
def served(package: OnnxPackage, observer: Noting) -> Iterator[ServedModel]:
    model = PackageDir(package.root)
    served = ServedModel(model, model.open(Variant(extra_outputs=observer.inner)), (observer,))
    yield served
    served.close()


def test_answer_is_what_the_original_computed(package: OnnxPackage):
    served = open_served(PackageDir(package.root), ServingSettings("m"))
    recorded = vectors()
    answer = served.answer(recorded.inputs)
    np.testing.assert_allclose(answer.outputs["y"], recorded.outputs["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guard", [False, True], ids=["bare", "guarded"])
def test_token_that_the_model_has_not_is_refused_and_its_batch_answered(
    tmp_path: Path, guard: bool
):
    package = write_lookup(tmp_path / "package")
    served = open_served(PackageDir(package.root), ServingSettings("m", threads=1, guard=guard))
    asked = [{"ids": np.array([item])} for item in ([1, 2], [3, 10], [9, 0])]
    first, bad, last = answer_batch(served.answer, served.batch_axis, asked)
    for reply, inputs in ((first, asked[0]), (last, asked[2])):
        assert isinstance(reply, Reply)
        np.testing.assert_array_equal(reply.outputs["y"], TABLE[inputs["ids"]])
    assert isinstance(bad, ConfigError)
    assert "input 'ids' is 10 at [0, 1], expected 0 to 9" in bad.message
    # No rung is to blame, and nobody is woken for it.
    counts = {family.name: family.samples for family in served.families()}
    assert not any(item.value for item in counts.get("moh_refused_requests_total", ()))
    assert not counts.get("moh_fallback_requests_total")
    served.close()


def test_inner_values_are_fetched_when_they_are_wanted_and_not_answered(
    served: ServedModel, observer: Noting
):
    x = vectors().inputs
    answers = [served.answer(x, (1, 1)) for _ in range(2)]
    assert [set(answer.outputs) for answer in answers] == [{"y"}, {"y"}]
    assert [set(run.results) for run in observer.runs] == [{"y", *observer.inner}, {"y"}]
    assert [run.sizes for run in observer.runs] == [(1, 1), (1, 1)]


def test_what_observers_count_is_there(served: ServedModel):
    served.answer(vectors().inputs)
    assert [family.samples[0].value for family in served.families()] == [1]


def test_close_closes_observers(served: ServedModel, observer: Noting):
    served.close()
    assert observer.is_closed


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((1, 2), np.float32)}, "with 2 axes"),
        ({"x": np.zeros((1, 2, 3), np.float64)}, "expected dtype float32"),
        ({"x": np.zeros((0, 2, WIDTH), np.float32)}, "the batch is empty, expected 1 sample"),
    ],
)
def test_wrong_inputs_are_refused(served: ServedModel, inputs: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        served.answer(inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seq", "error"), [(0, ConfigError), (2, BackendError)])
def test_empty_tensor_that_the_runtime_refuses_is_the_clients_fault(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch, seq: int, error: type[MoHDeployError]
):
    def fails(*_: object) -> None:
        raise BackendError("it does not run.", hint="Send more.")

    monkeypatch.setattr(type(served._source), "run", fails)
    with pytest.raises(MoHDeployError, match=r"it does not run\.\n  hint: Send more") as caught:
        served.answer({"x": np.zeros((1, seq, WIDTH), np.float32)})
    assert type(caught.value) is error


def test_threads_of_a_served_model_do_not_spin():
    assert not served_variant(ServingSettings("m")).spins


@sampled(2)
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("100000 100000", 1),
        ("250000 100000", 3),
        ("9900000 100000", 8),
        ("max 100000", 8),
        (None, 8),
    ],
    ids=str,
)
def test_cores_are_those_that_a_container_gets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, expected: int
):
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit + "\n")
    monkeypatch.setattr(served_model_module, "_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(served_model_module.os, "sched_getaffinity", lambda _: set(range(8)))
    assert cores() == expected


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
    requests = [{"x": np.array(value)} for value in values]
    replies = answer_batch(model, axis, requests)
    return [
        str(reply) if isinstance(reply, Exception) else reply.outputs["y"].tolist()
        for reply in replies
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


SETTINGS = ServingSettings("m")


def test_independent_samples_are_joined_and_no_observer_sees_the_trial(
    package: OnnxPackage, monkeypatch: pytest.MonkeyPatch
):
    served = open_served(PackageDir(package.root), SETTINGS)
    monkeypatch.setattr(served, "answer", None)
    assert find_joining(served) == (BatchAxis("batch"), None)
    sampled = {
        family.name: [series.value for series in family.samples]
        for family in served.families()
        if family.name.startswith("moh_sampled")
    }
    assert sampled == {"moh_sampled_requests_total": [0], "moh_sampled_tokens_total": [0]}
    served.close()


DEPENDS = "output 'y' of a sample depends on the other samples"


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda root: write_mixing(root, "ReduceMean"), DEPENDS),
        (lambda root: write_mixing(root, "ReduceMax"), DEPENDS),
        (lambda root: write_mixing(root, "ReduceMean", "3"), "no first axis in common"),
        (lambda root: write_package(root, sets=(vectors(batch=1),)), "no recorded run has several"),
    ],
    ids=["mean", "max", "one size", "one sample"],
)
def test_requests_run_alone_unless_their_samples_are_proven_independent(
    tmp_path: Path, write: Callable[[Path], object], reason: str
):
    write(tmp_path / "package")
    served = open_served(find_deployed(tmp_path / "package"), SETTINGS)
    axis, alone_because = find_joining(served)
    served.close()
    assert axis is None
    assert reason in str(alone_because)

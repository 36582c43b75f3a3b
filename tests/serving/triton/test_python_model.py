"""The Python backend's model, with classes that stand for the server's."""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving import served_model
from moh_deploy.serving.metrics import Family, Series
from moh_deploy.serving.served_model import Reply, ServedModel
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton import python_model
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.serving.triton.python_model import TritonPythonModel
from moh_deploy.system.npz import Array
from tests.handmade_package import vectors
from tests.serving.graphs import write_mixing, write_scaled
from tests.serving.telemetry.collector import collecting
from tests.serving.triton.bundles import bundle_of_handmade

FAMILIES = (
    Family("moh_a_total", "A.", "counter", (Series({"layer": "l"}, 3.0),)),
    Family("moh_mode", "Mode.", "gauge", (Series({"arm": "kernels"}, 1.0),)),
    Family(
        "moh_margin", "Margin.", "histogram", (Series({}, 2.5, {0.1: 1, 2**-0.5: 4, np.inf: 5}),)
    ),
)


@dataclass
class Request:
    """A request with tensors by name."""

    tensors: Mapping[str, Array]
    id: str = ""
    outputs: Sequence[str] = ("y",)

    def request_id(self) -> str:
        return self.id

    def requested_output_names(self) -> Sequence[str]:
        return self.outputs


@dataclass
class FakeMetric:
    """Keeps what was sent."""

    labels: Mapping[str, str]
    value: float = 0.0
    sent: int = 0

    def increment(self, value: float) -> None:
        self.value += value
        self.sent += 1

    def set(self, value: float) -> None:
        self.value = value
        self.sent += 1


@dataclass
class FakeFamily:
    """A family of the server."""

    name: str
    description: str
    kind: str
    metrics: list[FakeMetric] = field(default_factory=list)

    def Metric(self, labels: Mapping[str, str]) -> FakeMetric:
        self.metrics.append(FakeMetric(labels))
        return self.metrics[-1]


class Server(SimpleNamespace):
    """What stands for `triton_python_backend_utils`: keeps families and lines of the log."""

    def __init__(self) -> None:
        self.families: dict[str, FakeFamily] = {}
        self.log: list[str] = []

        def family(name: str, description: str, kind: str) -> FakeFamily:
            self.families[name] = FakeFamily(name, description, kind)
            return self.families[name]

        family.COUNTER, family.GAUGE = "counter", "gauge"  # type: ignore[attr-defined]
        super().__init__(
            MetricFamily=family,
            Logger=SimpleNamespace(log_info=self.log.append),
            Tensor=SimpleNamespace(from_dlpack=lambda name, tensor: (name, np.from_dlpack(tensor))),
            TritonError=_error,
            InferenceResponse=_response,
            get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
        )


def _error(message: str, code: str) -> SimpleNamespace:
    return SimpleNamespace(message=message, code=code)


_error.INVALID_ARG, _error.INTERNAL = "invalid", "internal"  # type: ignore[attr-defined]


def _response(tensors: Sequence[Any] = (), error: Any = None) -> SimpleNamespace:
    return SimpleNamespace(outputs=dict(tensors), error=error)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server)
    monkeypatch.setattr(python_model, "PUSH_SECONDS", 3600)
    return server


def initialized(root: Path, name: str) -> TritonPythonModel:
    config = {
        "instance_group": [{"count": 1}],
        "parameters": {"log_batches": {"string_value": "1"}},
    }
    model = TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(root / "repository" / name),
            "model_instance_name": f"{name}_0_0",
            "model_name": name,
            "model_version": "1",
        }
    )
    return model


@pytest.fixture
def model(server: Server, tmp_path: Path) -> Iterator[TritonPythonModel]:
    model = initialized(bundle_of_handmade(tmp_path), "handmade")
    yield model
    model.finalize()


def request(seed: int, batch: int = 1, seq: int = 3) -> Request:
    return Request(vectors(batch=batch, seq=seq, seed=seed).inputs, f"r{seed}")


def right(seed: int, batch: int = 1, seq: int = 3) -> Array:
    return vectors(batch=batch, seq=seq, seed=seed).outputs["y"]


def test_each_request_gets_its_own_rows(model: TritonPythonModel, server: Server):
    answers = model.execute([request(0, batch=2), request(1), request(2, batch=3)])
    for answer, expected in zip(answers, [right(0, 2), right(1), right(2, 3)], strict=True):
        np.testing.assert_allclose(answer.outputs["y"], expected, rtol=1e-5, atol=1e-6)
    assert server.log == ["batch of requests: r0 r1 r2"]


def test_requests_of_other_sizes_are_batches_of_their_own(model: TritonPythonModel, server: Server):
    answers = model.execute([request(0), request(1, seq=5), request(2)])
    for answer, expected in zip(answers, [right(0), right(1, seq=5), right(2)], strict=True):
        np.testing.assert_allclose(answer.outputs["y"], expected, rtol=1e-5, atol=1e-6)
    assert server.log == ["batch of requests: r0 r2", "batch of requests: r1"]


def test_requests_whose_samples_are_not_independent_run_alone(server: Server, tmp_path: Path):
    package = write_mixing(tmp_path / "package", "ReduceMean")
    settings = ServingSettings("mixing")
    write_bundle(find_deployed(package.root), tmp_path / "bundle", settings)
    model = initialized(tmp_path / "bundle", "mixing")
    asked = [np.full((1, 2), 3, np.float32), np.array([[1, 2], [3, 6]], np.float32)]
    first, second = model.execute([Request({"x": item}) for item in asked])
    model.finalize()
    np.testing.assert_array_equal(first.outputs["y"], asked[0] * 0)
    np.testing.assert_array_equal(second.outputs["y"], asked[1] - [2, 4])
    assert "one by one: output 'y' of a sample depends on the other samples" in server.log[0]


def test_number_without_axes_has_one_in_the_server(server: Server, tmp_path: Path):
    write_scaled(tmp_path / "package")
    settings = ServingSettings("scaled")
    write_bundle(find_deployed(tmp_path / "package"), tmp_path / "bundle", settings)
    model = initialized(tmp_path / "bundle", "scaled")
    x, scale = np.ones((4, 3), np.float32), np.array([5], np.float32)
    (answer,) = model.execute([Request({"x": x, "scale": scale}, outputs=("output", "total"))])
    model.finalize()
    np.testing.assert_array_equal(answer.outputs["output"], 5 * x)
    assert answer.outputs["total"].tolist() == [60]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((1, 3, 7), np.float32)}, "input 'x' is"),
        ({"x": np.zeros((1, 3, 8), np.float64)}, "input 'x' is"),
    ],
)
def test_bad_request_gets_its_error_and_spoils_no_other(
    model: TritonPythonModel, tensors: Mapping[str, Array], message: str
):
    good, bad, also_good = model.execute([request(0), Request(tensors), request(1)])
    assert bad.error.code == "invalid"
    assert message in bad.error.message
    for answer, seed in ((good, 0), (also_good, 1)):
        np.testing.assert_allclose(answer.outputs["y"], right(seed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("error", "code", "status", "message"),
    [
        (BackendError("the runtime failed"), "internal", 500, "the runtime failed"),
        (
            ValueError("what"),
            "internal",
            500,
            "this is a bug of moh-deploy: ValueError was not expected.",
        ),
        (ConfigError("input 'ids' is 99"), "invalid", 400, "input 'ids' is 99"),
    ],
)
def test_request_that_fails_does_not_fail_those_that_it_was_joined_with(
    model: TritonPythonModel,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
    status: int,
    message: str,
):
    answer = model._served.answer

    def fail(inputs: Mapping[str, Array], sizes: Sequence[int] = ()) -> Reply:
        if np.isnan(inputs["x"]).any():
            raise error
        return answer(inputs, sizes)

    monkeypatch.setattr(model._served, "answer", fail)
    failing = request(1)
    failing.tensors["x"][:] = np.nan
    model._statuses.clear()
    good, bad, also_good = model.execute([request(0), failing, request(2)])
    assert model._statuses == {200: 2, status: 1}
    assert (bad.error.code, bad.error.message, bad.outputs) == (code, message, {})
    for reply, seed in ((good, 0), (also_good, 2)):
        np.testing.assert_allclose(reply.outputs["y"], right(seed), rtol=1e-5, atol=1e-6)


def test_inputs_are_copied_out_of_the_servers_memory(model: TritonPythonModel):
    asked = request(0)
    inputs = model._read(asked)
    assert isinstance(inputs, dict)
    asked.tensors["x"][:] = np.nan
    np.testing.assert_array_equal(inputs["x"], vectors(batch=1, seed=0).inputs["x"])


LABELS = {"model": "m", "version": "1"}


def metrics_of(server: Server, instance: str = "m_0_0") -> python_model._Metrics:
    return python_model._Metrics(server, instance, LABELS)  # type: ignore[arg-type]


def test_counts_go_to_the_server_once(server: Server):
    metrics = metrics_of(server)
    metrics.push(FAMILIES)
    metrics.push(FAMILIES)
    (counter,) = server.families["moh_a_total"].metrics
    assert (counter.labels, counter.value, counter.sent) == ({**LABELS, "layer": "l"}, 3.0, 1)
    more = Family("moh_a_total", "A.", "counter", (Series({"layer": "l"}, 5.0),))
    metrics.push((more,))
    assert counter.value == 5.0


def test_gauges_say_which_instance_they_are_of(server: Server):
    metrics_of(server, "m_0_1").push(FAMILIES)
    (gauge,) = server.families["moh_mode"].metrics
    assert gauge.labels == {**LABELS, "arm": "kernels", "instance": "m_0_1"}


def test_histogram_goes_as_its_buckets_sum_and_count(server: Server):
    metrics_of(server).push(FAMILIES)
    buckets = server.families["moh_margin_bucket"].metrics
    found = {bucket.labels["le"]: bucket.value for bucket in buckets}
    assert found == {"0.1": 1, "0.7071067811865476": 4, "+Inf": 5}
    assert server.families["moh_margin_sum"].metrics[0].value == 2.5
    assert server.families["moh_margin_count"].metrics[0].value == 5


def test_last_counts_are_sent_when_the_model_is_unloaded(
    server: Server, model: TritonPythonModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model._served, "families", lambda: FAMILIES)
    model.finalize()
    assert server.families["moh_a_total"].metrics[0].value == 3.0
    assert server.families["moh_hung_runs"].metrics[0].value == 0
    # What ends in order is not missed.
    assert server.families["moh_heartbeat_seconds"].metrics[0].value == 0


def test_guard_follows_its_control_file_where_no_request_comes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(python_model, "PUSH_SECONDS", 0.01)
    ticked = threading.Event()
    monkeypatch.setattr(ServedModel, "guard", SimpleNamespace(tick=ticked.set))
    model = initialized(bundle_of_handmade(tmp_path), "handmade")
    assert ticked.wait(60)
    model.finalize()


def test_collector_gets_the_metrics_of_an_instance(server: Server, tmp_path: Path):
    with collecting() as collector:
        model = initialized(bundle_of_handmade(tmp_path, otlp=collector.url), "handmade")
        model.execute([request(0, batch=2, seq=3)])
        model.finalize()
    found = collector.scraped()
    assert list(found["moh_routed_tokens_total"].values()) == [6]
    assert "moh_heartbeat_seconds" in found
    assert "moh_hung_runs" in found


def test_missing_exporter_is_told_before_the_model_is_opened(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = bundle_of_handmade(tmp_path, otlp="http://collector:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    monkeypatch.setattr(served_model, "open_model", None)
    with pytest.raises(ConfigError, match="--otlp needs OpenTelemetry's exporter"):
        initialized(root, "handmade")


def test_heart_beats_as_long_as_the_instance_lives(server: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(python_model, "PUSH_SECONDS", 0.01)
    before = time.time()
    model = initialized(bundle_of_handmade(tmp_path), "handmade")
    # An instance that dies at once has been heard of: it can be missed.
    first = (beats := server.families["moh_heartbeat_seconds"].metrics[0]).value
    while beats.value == first and time.time() < before + 60:
        time.sleep(0.01)
    last = beats.value
    model.finalize()
    assert before <= first < last

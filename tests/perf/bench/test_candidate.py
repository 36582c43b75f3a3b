from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import BackendError, PackageError
from moh_deploy.perf.bench.candidate import FreshTask, Latency, Timing, fresh_run, runs_timer
from moh_deploy.runtime import models
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import OnnxFile
from moh_deploy.system.npz import write_npz
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly


def timing(count: int) -> Timing:
    """Return runs of 1, 2, 3 ... ms, shuffled, each with twice as much CPU time, read in a window
    four times as long."""
    wall = tuple(float(1 + 37 * i % count) for i in range(count))
    return Timing(wall, tuple(2 * ms for ms in wall), tuple(4 * ms for ms in wall))


def test_percentiles_are_times_that_so_many_runs_did_not_exceed():
    latency = Latency.of(timing(101))
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == (51.0, 91.0, 100.0)
    assert (latency.runs, latency.mean_ms, latency.cpu_ms) == (101, 51.0, 102.0)


def test_utilisation_is_of_the_time_in_which_cpu_time_was_counted():
    assert Latency.of(timing(101)).utilisation == 0.5


@pytest.mark.parametrize(
    ("runs", "p90", "p99"), [(9, None, None), (10, 9.0, None), (99, 90.0, None)]
)
def test_percentiles_of_too_few_runs_are_left_out(runs: int, p90: float | None, p99: float | None):
    latency = Latency.of(timing(runs))
    assert (latency.p90_ms, latency.p99_ms) == (p90, p99)


def test_timer_gives_wall_and_cpu_time_of_each_run():
    times = runs_timer(0.0, 0.0, threads=1)(
        {"busy": lambda: sum(range(20_000)), "idle": lambda: None}
    )
    assert set(times) == {"busy", "idle"}
    for time in times.values():
        assert len(time.wall_ms) == len(time.cpu_ms) == 7
        assert all(around > wall for around, wall in zip(time.around_ms, time.wall_ms, strict=True))
    assert min(times["busy"].cpu_ms) > 0


def test_runs_are_kept_in_order_and_of_many_a_bounded_number():
    assert Latency.of(timing(5)).sorted_ms == (1.0, 2.0, 3.0, 4.0, 5.0)
    kept = Latency.of(timing(10_000)).sorted_ms
    assert (len(kept), kept[0], kept[100], kept[-1]) == (201, 1.0, 5001.0, 10_000.0)
    assert list(kept) == sorted(kept)


@pytest.fixture
def task(tmp_path: Path) -> FreshTask:
    package = write_package(tmp_path / "package")
    write_npz(tmp_path / "in.npz", vectors().inputs)
    variant = Variant(kernels="off", threads=1)
    return FreshTask(OnnxFile(package.model_path), variant, tmp_path / "in.npz")


def test_process_of_its_own_loads_the_model_and_runs_it(task: FreshTask):
    # What this process holds is no part of the other one's peak.
    ballast = bytearray(b"x") * (300 * 2**20)
    found = fresh_run(task)
    assert len(ballast)
    assert found.load_ms > 0
    assert found.first_run_ms > 0
    assert found.peak_memory_bytes is not None
    assert 2**20 < found.peak_memory_bytes < 300 * 2**20


def test_import_of_another_runtime_is_no_part_of_loading(task: FreshTask, monkeypatch):
    imported: list[str] = []
    monkeypatch.setattr(models, "openvino_name", lambda: imported.append("openvino"))
    monkeypatch.setattr(models, "runtime_name", lambda: imported.append("onnxruntime"))
    task.model.import_runtime("openvino")
    assert imported == ["openvino"]


@nightly
def test_error_of_the_process_keeps_its_kind(task: FreshTask):
    with pytest.raises(PackageError, match=r"gone\.onnx does not exist"):
        fresh_run(replace(task, model=OnnxFile(task.inputs.with_name("gone.onnx"))))


def test_process_that_dies_is_an_error_that_says_so(task: FreshTask, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(BackendError, match=r"^the process that loads .* ended with status 1: $"):
        fresh_run(task)

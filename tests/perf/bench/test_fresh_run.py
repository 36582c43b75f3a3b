from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import BackendError, PackageError
from moh_deploy.perf.bench.latency import FreshTask, fresh_run
from moh_deploy.runtime import models
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import OnnxFile
from moh_deploy.system.npz import write_npz
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly


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


def test_import_of_another_runtime_is_no_part_of_loading(
    task: FreshTask, monkeypatch: pytest.MonkeyPatch
):
    imported: list[str] = []
    monkeypatch.setattr(models, "openvino_name", lambda: imported.append("openvino"))
    monkeypatch.setattr(models, "runtime_name", lambda: imported.append("onnxruntime"))
    task.model.import_runtime("openvino")
    assert imported == ["openvino"]


@nightly
def test_error_of_the_process_keeps_its_kind(task: FreshTask):
    with pytest.raises(PackageError, match=r"gone\.onnx does not exist"):
        fresh_run(replace(task, model=OnnxFile(task.inputs.with_name("gone.onnx"))))


def test_process_that_dies_is_an_error_that_says_so(
    task: FreshTask, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(BackendError, match=r"^the process that loads .* ended with status 1: $"):
        fresh_run(task)

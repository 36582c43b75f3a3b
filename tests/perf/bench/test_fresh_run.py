from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import BackendError
from moh_deploy.perf.bench.fresh_ort import OrtTask
from moh_deploy.perf.bench.fresh_run import fresh_run
from moh_deploy.system.npz import write_npz
from tests.handmade_package import vectors, write_package


@pytest.fixture
def task(tmp_path: Path) -> OrtTask:
    package = write_package(tmp_path / "package")
    write_npz(tmp_path / "in.npz", vectors().inputs)
    return OrtTask(package.model_path, tmp_path / "in.npz", 1, "off", "float32")


def test_process_of_its_own_loads_the_model_and_runs_it(task: OrtTask):
    # What this process holds is no part of the other one's peak.
    ballast = bytearray(b"x") * (300 * 2**20)
    found = fresh_run(task)
    assert len(ballast)
    assert found.load_ms > 0
    assert found.first_run_ms > 0
    assert found.peak_memory_bytes is not None
    assert 2**20 < found.peak_memory_bytes < 300 * 2**20


def test_process_that_dies_is_an_error_that_says_why(task: OrtTask):
    with pytest.raises(BackendError, match=r"(?s)ended with status 1: .*gone\.onnx does not exist"):
        fresh_run(replace(task, model=task.model.with_name("gone.onnx")))

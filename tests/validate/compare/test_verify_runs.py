import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from moh_deploy.errors import BackendError, PackageError, ValidationError
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.validate.compare.verify_runs import Way, early_prover, prove
from tests.handmade_package import write_package
from tests.kernel_library import required_library
from tests.nightly import nightly


def test_equal_package_is_proven(tmp_path: Path):
    (run,) = prove(write_package(tmp_path / "package").root, [Way("off")])
    assert run.max_abs_error < 5e-6
    assert run.routing_agreement == 1.0
    assert (run.kernel_nodes, run.function_nodes) == (0, 1)
    assert run.layer_runs == (LayerRun("blocks.0.attn", "function", None),)
    assert run.kernels.reason == "switched off"


@pytest.mark.usefixtures("warm_processes")
def test_kernels_are_proven_too(tmp_path: Path):
    library = required_library()
    package = write_package(tmp_path / "package", compute_type="bfloat16")
    (run,) = prove(package.root, [Way("require")])
    assert (run.kernel_nodes, run.function_nodes) == (1, 0)
    assert run.layer_runs == (LayerRun("blocks.0.attn", "kernel", None),)
    assert run.kernels.library == library
    assert run.kernels.asked_compute_type == "bfloat16"


@nightly
@pytest.mark.usefixtures("warm_processes")
def test_one_process_runs_function_bodies_and_then_kernels(tmp_path: Path):
    required_library()
    package = write_package(tmp_path / "package")
    with count_processes() as started:
        bodies, kernels = prove(package.root, [Way("off"), Way("auto", vectors=1)])
    assert len(started) == 1
    assert bodies == prove(package.root, [Way("off")])[0]
    assert kernels == prove(package.root, [Way("auto", vectors=1)])[0]
    assert (bodies.kernel_nodes, kernels.kernel_nodes) == (0, 1)
    assert kernels.vector_sets == 1


@contextmanager
def count_processes() -> Iterator[list[object]]:
    with patch("subprocess.Popen", wraps=subprocess.Popen) as start:
        yield start.mock_calls


@nightly
def test_process_that_starts_before_the_package_is_there_proves_the_same(tmp_path: Path):
    with count_processes() as started, early_prover() as early:
        package = write_package(tmp_path / "package")
        found = early(package.root, [Way("off")])
    assert len(started) == 1
    assert found == prove(package.root, [Way("off")])


@pytest.mark.usefixtures("warm_processes")
def test_wrong_package_is_not(tmp_path: Path):
    package = write_package(tmp_path / "package", scale=1.001)
    with pytest.raises(ValidationError, match="not equal to the reference"):
        prove(package.root, [Way("off")])


@pytest.mark.usefixtures("warm_processes")
def test_error_of_the_process_keeps_its_kind(tmp_path: Path):
    with pytest.raises(PackageError, match=r"nowhere does not exist"):
        prove(tmp_path / "nowhere", [Way("off")])


def test_process_that_dies_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(BackendError, match="ended with status 1"):
        prove(tmp_path, [Way("off")])

from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy.errors import BackendError, PackageError, ValidationError
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.validate.fresh_process import prove
from tests.handmade_package import write_package
from tests.kernel_library import required_library


def test_equal_package_is_proven(tmp_path: Path):
    run = prove(write_package(tmp_path / "package").root, "off")
    assert run.max_abs_error < 5e-6
    assert run.routing_agreement == 1.0
    assert (run.kernel_nodes, run.function_nodes) == (0, 1)
    assert run.layer_runs == (LayerRun("blocks.0.attn", "function", None),)
    assert run.kernels.reason == "switched off"


def test_kernels_are_proven_too(tmp_path: Path):
    library = required_library()
    run = prove(write_package(tmp_path / "package", compute_type="bfloat16").root, "require")
    assert (run.kernel_nodes, run.function_nodes) == (1, 0)
    assert run.layer_runs == (LayerRun("blocks.0.attn", "kernel", None),)
    assert run.kernels.library == library
    assert run.kernels.asked_compute_type == "bfloat16"


def test_wrong_package_is_not(tmp_path: Path):
    package = write_package(tmp_path / "package", scale=1.001)
    with pytest.raises(ValidationError, match="not equal to the reference"):
        prove(package.root, "off")


def test_error_of_the_process_keeps_its_kind(tmp_path: Path):
    with pytest.raises(PackageError, match=r"nowhere does not exist"):
        prove(tmp_path / "nowhere", "off")


def test_process_that_dies_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(BackendError, match="ended with status 1"):
        prove(tmp_path, "off")

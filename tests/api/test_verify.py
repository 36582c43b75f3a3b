from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.system.npz import write_npz
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library, without_library


def test_good_package_is_equal_on_every_recorded_size(tmp_path: Path):
    sets = (vectors(), vectors(batch=1, seq=1), vectors(batch=3, seq=37))
    write_package(tmp_path / "package", sets=sets)
    report = moh_deploy.verify(tmp_path / "package")
    assert report.equal
    assert report.vector_sets == 3
    assert report.reference == "vectors recorded from the original model"
    assert [output.vectors for output in report.outputs][2] == "2 (batch=3, seq=37)"


def test_wrong_package_is_not_equal(tmp_path: Path):
    write_package(tmp_path / "package", scale=1.001)
    report = moh_deploy.verify(tmp_path / "package")
    assert not report.equal
    assert report.routing_agreement == 1.0


def test_more_recorded_runs_than_there_are_is_refused(tmp_path: Path):
    write_package(tmp_path / "package", sets=(vectors(), vectors(batch=3)))
    assert moh_deploy.verify(tmp_path / "package", vectors=2).vector_sets == 2
    with pytest.raises(ConfigError, match="vectors is 3, but there are 2 recorded runs"):
        moh_deploy.verify(tmp_path / "package", vectors=3)


def test_users_inputs_are_compared_with_function_bodies_and_the_report_says_so(tmp_path: Path):
    # The package is wrong, but the same with and without optimisations: this reference cannot tell.
    write_package(tmp_path / "package", scale=1.5)
    write_npz(tmp_path / "user.npz", vectors(batch=5, seed=9).inputs)
    report = moh_deploy.verify(tmp_path / "package", inputs=[tmp_path / "user.npz"])
    assert report.equal
    assert report.routing_agreement == 1.0
    assert "function bodies with optimisations off" in report.reference
    assert "not the original model" in report.reference


def test_users_expected_outputs_are_the_reference(tmp_path: Path):
    write_package(tmp_path / "package")
    good, bad = vectors(batch=5, seed=9), vectors(batch=4, seed=8)
    write_npz(tmp_path / "good.npz", {**good.inputs, **good.outputs})
    write_npz(tmp_path / "bad.npz", {**bad.inputs, "y": bad.outputs["y"] + np.float32(1)})
    assert moh_deploy.verify(tmp_path / "package", inputs=[tmp_path / "good.npz"]).equal
    report = moh_deploy.verify(
        tmp_path / "package", inputs=[tmp_path / "good.npz", tmp_path / "bad.npz"]
    )
    assert not report.equal
    assert report.routing_agreement is None
    assert report.vector_sets == 2
    assert (
        report.reference == f"expected outputs in {tmp_path / 'good.npz'}, {tmp_path / 'bad.npz'}"
    )


def test_required_kernels_that_are_not_there_are_refused(tmp_path: Path, monkeypatch):
    write_package(tmp_path / "package")
    without_library(tmp_path / "none", monkeypatch)
    with pytest.raises(BackendError, match="no kernel library"):
        moh_deploy.verify(tmp_path / "package", kernels="require")
    report = moh_deploy.verify(tmp_path / "package")
    assert report.equal
    assert (report.kernel_nodes, report.function_nodes) == (0, 1)
    assert "cmake was not found" in str(report.kernels.reason)


def test_kernels_are_compared_with_the_original_and_with_function_bodies(tmp_path: Path):
    required_library()
    write_package(tmp_path / "package")
    write_npz(tmp_path / "user.npz", vectors(batch=5, seed=9).inputs)
    for inputs in ([], [tmp_path / "user.npz"]):
        report = moh_deploy.verify(tmp_path / "package", inputs=inputs, kernels="require")
        assert report.equal
        assert (report.kernel_nodes, report.function_nodes) == (1, 0)


def test_products_of_bfloat16_are_equal_within_their_own_tolerance(tmp_path: Path):
    required_library()
    sets = (vectors(batch=3, seq=37),)
    write_package(tmp_path / "package", compute_type="bfloat16", sets=sets)
    report = moh_deploy.verify(tmp_path / "package", kernels="require")
    assert report.equal
    rounds = report.kernels.compute_type == "bfloat16"
    assert (report.max_abs_error > 1e-5) is rounds

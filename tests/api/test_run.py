from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.system.npz import write_npz
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package").root


def test_outputs_are_written_by_name(tmp_path: Path, package: Path):
    expected = vectors(batch=1, seq=7)
    write_npz(tmp_path / "in.npz", expected.inputs)
    files = {"inputs": tmp_path / "in.npz", "outputs": tmp_path / "out.npz"}
    report = moh_deploy.run(package, **files, kernels="off")
    with np.load(tmp_path / "out.npz") as results:
        assert results.files == ["y"]
        np.testing.assert_allclose(results["y"], expected.outputs["y"], atol=1e-5)
    assert [(one.name, one.shape) for one in report.outputs] == [("y", (1, 7, 8))]
    assert (report.kernel_nodes, report.function_nodes) == (0, 1)
    assert report.kernels.reason == "switched off"
    assert report.num_nan == {}


def test_inputs_in_their_order_are_said(tmp_path: Path, package: Path):
    np.savez(tmp_path / "in.npz", vectors().inputs["x"])
    files = {"inputs": tmp_path / "in.npz", "outputs": tmp_path / "out.npz"}
    report = moh_deploy.run(package, **files, kernels="off")
    assert report.by_order.endswith(
        "in.npz: no member is called as an input, so order counts: 'x' is 'arr_0'"
    )
    assert report.by_order in report.document().remarks


def test_run_on_kernels_says_so(tmp_path: Path, package: Path):
    library = required_library()
    write_npz(tmp_path / "in.npz", vectors().inputs)
    report = moh_deploy.run(package, inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz")
    assert (report.kernel_nodes, report.function_nodes) == (1, 0)
    assert report.kernels.library == library


def test_nan_in_an_output_is_said(tmp_path: Path, package: Path):
    inputs = dict(vectors(batch=2, seq=7).inputs)
    inputs["x"] = inputs["x"].copy()
    inputs["x"][0] = np.nan
    write_npz(tmp_path / "in.npz", inputs)
    files = {"inputs": tmp_path / "in.npz", "outputs": tmp_path / "out.npz"}
    report = moh_deploy.run(package, **files, kernels="off")
    assert report.num_nan == {"y": 7 * 8}
    assert "output 'y' is NaN in 56 of its 112 elements" in " ".join(report.document().remarks)


def test_failed_run_leaves_no_outputs(tmp_path: Path, package: Path):
    write_npz(tmp_path / "in.npz", {"x": np.zeros(3)})
    with pytest.raises(ConfigError, match="expected dtype float32"):
        moh_deploy.run(package, inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in.npz", "package"]


def test_files_of_the_user_are_not_overwritten(tmp_path: Path, package: Path):
    inputs = tmp_path / "in.npz"
    write_npz(inputs, vectors().inputs)
    before = inputs.read_bytes()
    with pytest.raises(ConfigError, match=r"in\.npz is to be written, and is read as well"):
        moh_deploy.run(package, inputs=inputs, outputs=inputs)
    (tmp_path / "train.py").write_text("import torch\n")
    with pytest.raises(PackageError, match=r"train\.py exists and is not a file of arrays"):
        moh_deploy.run(package, inputs=inputs, outputs=tmp_path / "train.py")
    assert inputs.read_bytes() == before
    for _ in range(2):  # outputs of before are replaced
        moh_deploy.run(package, inputs=inputs, outputs=tmp_path / "out.npz", kernels="off")


def test_place_that_cannot_hold_outputs_is_refused_first(tmp_path: Path):
    with pytest.raises(PackageError, match="cannot be written: it is a directory"):
        moh_deploy.run(tmp_path / "none", inputs=tmp_path / "none", outputs=tmp_path)
    with pytest.raises(
        PackageError, match=r"out\.npz cannot be written: there is no directory .*none\."
    ):
        moh_deploy.run(tmp_path, inputs=tmp_path, outputs=tmp_path / "none" / "out.npz")
    with pytest.raises(PackageError, match="named like a file of one array") as refused:
        moh_deploy.run(tmp_path, inputs=tmp_path, outputs=tmp_path / "out.npy")
    assert "out.npz" in str(refused.value.hint)

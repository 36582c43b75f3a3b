"""Commands with another runtime: nightly, since the extension is built and models are compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy import native
from moh_deploy.package import OnnxPackage
from moh_deploy.system.npz import write_npz
from tests.edge_case_package import write_edge_package
from tests.openvino_extension import built_extension
from tests.projected_package import write_projected

pytestmark = pytest.mark.nightly


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "FOLDER", built_extension())


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_edge_package(tmp_path / "package")


def test_run_writes_what_the_original_computed(package: OnnxPackage, tmp_path: Path):
    one = package.vectors[0]
    write_npz(tmp_path / "in.npz", one.inputs)
    report = moh_deploy.run(
        package.root,
        inputs=tmp_path / "in.npz",
        outputs=tmp_path / "out.npz",
        runtime="openvino",
        kernels="require",
    )
    assert report.function_nodes == 0
    with np.load(tmp_path / "out.npz") as written:
        assert list(written) == list(one.outputs)
        for name in written:
            np.testing.assert_allclose(written[name], one.outputs[name], rtol=1e-4, atol=1e-5)


def test_bench_times_package_and_bodies_in_the_runtime(package: OnnxPackage):
    report = moh_deploy.bench(
        package.root,
        baselines=["functions"],
        runtime="openvino",
        threads=1,
        min_time=0.05,
        warmup=0.0,
        gates=["p50 <= 1000 * functions"],
    )
    assert report.runtime.startswith("OpenVINO 20")
    assert report.failure is None


def test_probe_passes(package: OnnxPackage):
    report = moh_deploy.probe(package.root, runtime="openvino")
    assert report.passed, report.failure


def test_tune_measures_and_proves_in_the_runtime_and_keeps_its_name(tmp_path: Path):
    package = write_projected(tmp_path / "package")
    moh_deploy.tune(package.root, runtime="openvino", threads=1, min_time=0.01)
    tuned = OnnxPackage.open(package.root)
    assert str(tuned.manifest.tuning.runtime).startswith("OpenVINO 20")
    assert moh_deploy.verify(package.root, runtime="openvino").equal

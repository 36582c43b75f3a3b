"""A runtime that only the metadata of an add-on knows is run, verified, measured and refused."""

from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.system.npz import read_npz, write_npz
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly
from tests.runtime.made_up_runtime import MadeUpDir, write_made_up
from tests.toy_add_on import add_ons_are_read_again, install

__all__ = ["add_ons_are_read_again"]
pytestmark = pytest.mark.usefixtures("add_ons_are_read_again")


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package")


@pytest.fixture
def made_up(package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    kind = f"{MadeUpDir.__module__}:{MadeUpDir.__name__}"
    install(tmp_path / "installed", monkeypatch, {"model_kinds": {"made-up": kind}})
    return write_made_up(tmp_path / "made-up", package)


def test_it_is_run(made_up: Path, tmp_path: Path):
    files = tmp_path / "in.npz", tmp_path / "out.npz"
    write_npz(files[0], vectors().inputs)
    report = moh_deploy.run(made_up, inputs=files[0], outputs=files[1])
    assert report.kernels.reason == "it has none"
    found = read_npz(files[1], error=ConfigError)["y"]
    np.testing.assert_allclose(found, vectors().outputs["y"], rtol=1e-4, atol=1e-6)


def test_it_is_verified_and_compared_with(made_up: Path, package: OnnxPackage):
    assert moh_deploy.verify(made_up).equal
    report = moh_deploy.verify(package.root, against=[made_up])
    assert (report.equal, report.reference) == (True, f"made-up {made_up}")


@nightly
def test_it_is_measured_here_and_in_a_process_of_its_own(made_up: Path, package: OnnxPackage):
    report = moh_deploy.bench(package.root, baselines=[made_up], min_time=0.0, warmup=0.0)
    found = report.results[1]
    assert found.contestant == str(made_up)
    assert found.agreement.reason is None
    assert found.fresh.load_ms is not None
    assert report.runtime.endswith(", made-up 1.0")


def test_what_needs_a_graph_refuses_it(made_up: Path):
    with pytest.raises(ConfigError, match="expected a package"):
        moh_deploy.bisect(made_up)
    with pytest.raises(ConfigError, match="no place to put logits"):
        moh_deploy.probe(made_up)

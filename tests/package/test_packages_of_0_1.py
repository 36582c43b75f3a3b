"""Packages that earlier trees of 0.1.0 wrote still open, and still are what they were.

The archives are named for the commit whose `moh_deploy.export` wrote them, of tests/small_moh.py at
2 samples of 5 tokens, with both dimensions dynamic.
"""

import shutil
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage

ARCHIVES = sorted((Path(__file__).parent / "packages_of_0_1").glob("*.zip"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.stem)
def package(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.unpack_archive(request.param, tmp_path)
    return tmp_path


def test_package_opens_with_the_layer_that_it_had(package: Path):
    manifest = OnnxPackage.open(package).manifest
    assert (manifest.format_version, manifest.made_with["moh-deploy"]) == (1, "0.1.0")
    (layer,) = manifest.layers
    assert (layer.num_heads, layer.num_shared_heads, layer.top_k) == (4, 2, 1)
    assert layer.replaced


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_package_is_equal_to_the_original_that_it_was_made_from(package: Path, kernels: str):
    report = moh_deploy.verify(package, kernels=kernels)
    assert report.equal
    assert report.failure is None


def test_a_changed_package_is_found(package: Path):
    model = package / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(PackageError):
        OnnxPackage.open(package)

"""`bisect --to int8`: which products have to stay in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from tests.handmade_package import write_package
from tests.routed_package import write_routed

TARGET = 0.0175  # one product is enough for it


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_routed(tmp_path_factory.mktemp("bisect") / "package")


def answer(root: Path) -> Array:
    """Return what a package makes of its recorded inputs."""
    package = OnnxPackage.open(root)
    return open_runner(package).run(package.vectors[0].inputs)["y"]


def test_package_that_is_right_in_int8_needs_nothing(package: OnnxPackage):
    report = moh_deploy.bisect(package.root, to="int8")
    assert not report.diverges
    assert report.precision == "int8"
    assert report.notes == (
        "`moh-deploy precision DIR --to int8 --output DIR` writes it as it is.",
    )


def test_products_that_have_to_stay_are_found_and_precision_takes_them(
    package: OnnxPackage, tmp_path: Path
):
    output = tmp_path / "repaired"
    report = moh_deploy.bisect(package.root, to="int8", target=TARGET, output=output)
    assert report.divergence is not None
    assert report.divergence.cause == "precision"
    node = report.divergence.node
    assert node is not None
    assert "quant" not in node.node  # none of the several that an integer product is
    assert report.repair is not None
    cure = report.repair.cure
    assert cure.smallest
    kept = [one.place.node for one in cure.nodes]
    assert 0 < len(kept) < 12  # of 12 products in int8
    assert moh_deploy.verify(output).equal
    assert OnnxPackage.open(output).manifest.precision == "int8"
    assert [one.name for one in OnnxPackage.open(output).manifest.float32_nodes] == kept
    # By hand it is the same package, and with one of the products in int8 it is another.
    for names, name in ((kept, "by_hand"), (kept[1:], "fewer")):
        moh_deploy.precision(package.root, to="int8", float32=names, output=tmp_path / name)
    np.testing.assert_array_equal(answer(tmp_path / "by_hand"), answer(output))
    assert not np.array_equal(answer(tmp_path / "fewer"), answer(output))
    assert all(f"--float32 {name}" in report.notes[-1] for name in kept)


@pytest.mark.nightly
def test_target_that_no_choice_of_products_meets_is_told(package: OnnxPackage):
    report = moh_deploy.bisect(package.root, to="int8", target=1e-9)
    assert report.repair is None
    assert "float32" in str(report.why_no_repair)


def test_model_without_products_is_refused(tmp_path: Path):
    bare = write_package(tmp_path / "package")
    with pytest.raises(ConfigError, match="no product that could be in int8"):
        moh_deploy.bisect(bare.root, to="int8")
    with pytest.raises(ConfigError, match="float16, bfloat16 or int8"):
        moh_deploy.bisect(bare.root, to="int3")

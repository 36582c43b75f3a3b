"""What a package is made of is not replaced by what is made of it, by any function that does so."""

from __future__ import annotations

from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.derive.with_top_k import with_top_k
from moh_deploy.errors import PackageError
from tests.handmade_package import write_package

MAKERS = {
    "precision": lambda root: moh_deploy.precision(root, to="int8", output=root),
    "prune": lambda root: moh_deploy.prune(root, output=root, keep=1),
    "with_top_k": lambda root: with_top_k(root, root, top_k=1),
    "bisect": lambda root: moh_deploy.bisect(root, to="float16", output=root),
    "bisect by a reference": lambda root: moh_deploy.bisect(
        root.with_name("low"), reference=root, output=root
    ),
    "tune_within": lambda root: moh_deploy.tune_within(root, within="parity", output=root),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_package_that_another_is_made_of_stays(tmp_path: Path, maker: str):
    root = write_package(tmp_path / "package").root
    before = (root / "model.onnx").read_bytes()
    with pytest.raises(PackageError, match="is the package that another one is to be made of"):
        MAKERS[maker](root)
    assert (root / "model.onnx").read_bytes() == before

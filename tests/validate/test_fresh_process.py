from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy.errors import BackendError, PackageError, ValidationError
from moh_deploy.validate import fresh_process
from moh_deploy.validate.fresh_process import prove
from tests.handmade_package import write_package

SIZES = ({"batch": 2, "seq": 3},)


def test_equal_package_is_proven(tmp_path: Path):
    proof = prove(write_package(tmp_path / "package").root, SIZES)
    assert proof.max_abs_error < 1e-6
    assert proof.routing_agreement == 1.0
    assert proof.sizes == SIZES


def test_wrong_package_is_not(tmp_path: Path):
    package = write_package(tmp_path / "package", scale=1.001)
    with pytest.raises(ValidationError, match="not equal to the reference"):
        prove(package.root, SIZES)


def test_error_of_the_process_keeps_its_kind(tmp_path: Path):
    with pytest.raises(PackageError, match=r"nowhere does not exist"):
        prove(tmp_path / "nowhere", SIZES)


def test_process_that_dies_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fresh_process.sys, "executable", "/bin/false")
    with pytest.raises(BackendError, match="died with status 1"):
        prove(tmp_path, SIZES)

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.ops.spec import MIN_OPSET
from moh_deploy.package.before_export import check_export

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with 1500 bytes of weights, on a disk with 1000 bytes free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2000, 1000, 1000))
    model = tmp_path / "model"
    model.mkdir()
    for name, size in (("a.safetensors", 700), ("b.safetensors", 800), ("config.json", 9000)):
        (model / name).write_bytes(bytes(size))
    return model


def test_weights_that_do_not_fit_on_the_disk_are_refused(tmp_path: Path, model: Path):
    with pytest.raises(PackageError, match="out needs 1500 bytes for the weights, 1000 bytes free"):
        check_export(ExportOptions(model, tmp_path / "out"))
    check_export(ExportOptions(model / "b.safetensors", tmp_path / "out"))
    # What these need is known when they are loaded.
    check_export(ExportOptions(model, tmp_path / "out", dtype="float16"))
    check_export(ExportOptions(model / "config.json", tmp_path / "out"))


def test_operator_set_without_function_bodies_is_refused(tmp_path: Path, model: Path):
    file = model / "a.safetensors"
    with pytest.raises(ConfigError, match="opset is 17, expected 18 or later"):
        check_export(ExportOptions(file, tmp_path / "out", opset=MIN_OPSET - 1))
    check_export(ExportOptions(file, tmp_path / "out", opset=MIN_OPSET))


def test_output_that_would_be_lost_is_refused_first(tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(PackageError, match="out is a file, expected a directory"):
        check_export(ExportOptions(tmp_path / "absent.pt", tmp_path / "out"))

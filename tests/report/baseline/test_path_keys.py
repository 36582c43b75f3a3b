from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy.report.baseline.figures import path_key, reference_key
from moh_deploy.validate.reference.reference import RECORDED


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a package in it, in which the command runs."""
    for name in ("build/last", "build/a, b", "ci"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_directory_has_one_key(checkout: Path):
    names = ["build/last", "./build/last/", "build/../build/last", str(checkout / "build/last")]
    assert {path_key(one, Path("model.json")) for one in names} == {"build/last"}
    assert {path_key(one, checkout / "model.json") for one in names} == {"build/last"}
    assert {path_key(one, Path("ci/model.json")) for one in names} == {"../build/last"}


def test_directory_in_which_the_command_runs_does_not_matter(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(checkout / "ci")
    assert path_key("../build/last", Path("../model.json")) == "build/last"


def test_links_are_not_followed(checkout: Path):
    (checkout / "current").symlink_to("build/last")
    assert path_key("current", Path("model.json")) == "current"


def test_what_lies_elsewhere_is_absolute():
    assert path_key("/data/in.npz", Path("/srv/model.json")) == "/data/in.npz"
    assert path_key("/data/in.npz", Path("/data/ci/model.json")) == "../in.npz"


@pytest.mark.parametrize("what", ["package", "engine", "ONNX model", "original model"])
def test_paths_in_references_have_their_keys(checkout: Path, what: str):
    file = Path("ci/model.json")
    for named in ("build/last", checkout / "build/last"):
        assert reference_key(f"{what} {named}", file) == f"{what} ../build/last"


def test_every_file_of_expected_outputs_has_its_key(checkout: Path):
    (checkout / "b.npz").touch()
    found = reference_key(f"expected outputs in {checkout}/build/last, b.npz", Path("m.json"))
    assert found == "expected outputs in build/last, b.npz"


@pytest.mark.parametrize(
    "words", [RECORDED, "the package with kernels", "original model ViT in memory", "package gone"]
)
def test_other_words_stay(checkout: Path, words: str):
    assert reference_key(words, Path("ci/model.json")) == words

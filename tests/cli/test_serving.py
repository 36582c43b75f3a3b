"""`moh-deploy watch` and `moh-deploy profile` on the command line."""

import json
from pathlib import Path

import pytest

from moh_deploy.serving.drift.reference import profile_of, write_reference
from tests.cli.run_cli import Cli
from tests.handmade_package import write_package
from tests.nightly import sampled
from tests.serving.drift.traffic import requests, window


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    reference = profile_of(window(requests(300, seed=0)), window=64, rate=0.01)
    write_reference(folder / "reference.json", reference)
    window(requests(100, seed=5)).write(folder / "same.npz")
    window(requests(100, seed=5, liked=(-0.5, 0.0, 0.5, 1.0))).write(folder / "other.npz")
    window(requests(0, seed=5)).write(folder / "empty.npz")
    return folder


@sampled(3)
@pytest.mark.parametrize(
    ("dump", "code", "said"),
    [("same", 0, "UNCHANGED"), ("other", 1, "DRIFTED"), ("empty", 1, "NO DATA")],
)
def test_exit_code_is_the_answer(cli: Cli, files: Path, dump: str, code: int, said: str):
    shown = cli("watch", f"{files / dump}.npz", "--reference", str(files / "reference.json"))
    assert shown.exit_code == code
    assert said in shown.out


def test_reports_are_written(cli: Cli, files: Path, tmp_path: Path):
    names = [f"--{kind}={tmp_path / kind}" for kind in ("html", "junit", "markdown")]
    reference = ["--reference", str(files / "reference.json")]
    shown = cli("watch", str(files / "other.npz"), *reference, *names, "--json")
    content = json.loads(shown.out)
    assert content["alarms"] is True
    assert content["error"]["exit_code"] == 1
    for kind in ("html", "junit", "markdown"):
        assert "DRIFTED" in (tmp_path / kind).read_text().upper() or kind == "junit"


def test_file_that_is_no_dump_ends_with_2(cli: Cli, files: Path):
    path = str(files / "reference.json")
    shown = cli("watch", path, "--reference", path)
    assert shown.exit_code == 2
    assert "cannot be read as an npz file" in shown.err


def test_the_command_prints_json_and_writes_a_page(cli: Cli, tmp_path: Path):
    package = write_package(tmp_path / "package")
    shown = cli(
        "drill", str(package.root), "--in-process", "--fault", "nan", "--seconds", "300ms",
        "--html", str(tmp_path / "page.html"), "--json",
    )  # fmt: skip
    assert shown.exit_code == 0
    said = json.loads(shown.out)
    assert said["passed"]
    assert said["faults"][0]["wrong"] == 0
    page = (tmp_path / "page.html").read_text()
    assert "HELD" in page
    assert "answered by" in page

"""Names of files that are no text, too long, or lead nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.run_cli import REPOSITORY, Cli
from tests.handmade_package import WIDTH, write_package
from tests.nightly import sampled

pytestmark = pytest.mark.usefixtures("warm_processes")

NOT_TEXT = os.fsdecode(b"d\xff")


@pytest.fixture(params=[False, True], ids=["weights inside", "weights beside"])
def strange(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = write_package(tmp_path / "package", external_data=request.param).root
    folder = tmp_path / NOT_TEXT
    folder.mkdir()
    np.savez(folder / "in.npz", x=np.zeros((2, 3, WIDTH), np.float32))
    made.rename(folder / "package")
    return folder


def started(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command in UTF-8, as on most machines: under the C locale every byte is text."""
    return subprocess.run(
        [sys.executable, "-m", "moh_deploy", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        check=False,
    )


@sampled(8)
@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "package"),
        ("verify", "package", "--html", "a.html", "--markdown", "a.md", "--junit", "a.xml"),
        ("run", "package", "--inputs", "in.npz", "--outputs", "out.npz"),
        ("precision", "package", "--to", "float16", "--output", "half"),
        ("inline", "package", "--output", "flat.onnx"),
        ("tune", "package", "--choose", "all=dense"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_package_in_a_directory_whose_name_is_no_text_works(
    strange: Path, arguments: tuple[str, ...]
):
    files = {"package", "in.npz", "out.npz", "half", "flat.onnx", "a.html", "a.md", "a.xml"}
    named = [str(strange / one) if one in files else one for one in arguments]
    ended = started(*named)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), ended.stderr
    assert all((strange / one).exists() for one in files & set(arguments))


def test_name_that_is_no_text_is_shown_by_its_numbers(tmp_path: Path):
    ended = started("inspect", tmp_path / NOT_TEXT, "--json")
    assert ended.returncode == 5
    assert rb"d\udcff does not exist" in ended.stdout
    assert rb"d\udcff does not exist" in ended.stderr


@pytest.mark.parametrize("option", [[], ["--html"], ["--policy"], ["--against"], ["--labels"]])
def test_name_that_no_file_can_have_is_wrong_usage(cli: Cli, package: Path, option: list[str]):
    long = package / ("x" * 300 + ".npz")
    failed = cli("verify", *([package] if option else []), *option, long)
    assert failed.exit_code == 2
    assert failed.err.startswith("error: ")
    assert "File name too long" in failed.err


def test_link_that_leads_to_itself_is_wrong_usage(cli: Cli, package: Path, tmp_path: Path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for arguments in (
        ("inspect", loop),
        ("precision", package, "--to", "float16", "--output", loop),
        ("inline", package, "--output", loop),
        ("run", package, "--inputs", loop, "--outputs", tmp_path / "o.npz"),
        ("verify", package, "--html", loop / "a.html"),
    ):
        failed = cli(*arguments)
        assert failed.exit_code == 2, arguments
        assert "Too many levels of symbolic links" in failed.err

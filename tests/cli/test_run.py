"""`moh-deploy generate` streams text to stdout; what loads an original needs one."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from moh_deploy.cli.prove import _is_checkpoint
from moh_deploy.cli.run import _Shown


def test_first_text_comes_at_once_and_others_behind_it():
    stdout = io.StringIO()
    shown = _Shown(stdout, 2)
    shown(0, "Once")
    shown(1, "She")
    assert stdout.getvalue() == "Once"
    shown(0, " upon")
    shown(1, " sells")
    shown.end()
    assert stdout.getvalue() == "Once upon\n\n[2]She sells\n\n"


def test_terminal_is_not_told_what_to_do():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stdout, expected in ((Terminal(), "a\ufffd[2Jb\n\tc"), (io.StringIO(), "a\x1b[2Jb\n\tc")):
        shown = _Shown(stdout, 1)
        shown(0, "a\x1b[2Jb\n\tc")
        assert stdout.getvalue() == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_full_disk_behind_stdout_leaves_stderr():
    program = """
import contextlib, sys
from moh_deploy.cli.run import _Shown
from moh_deploy.errors import PackageError
shown = _Shown(sys.stdout, 1)
with contextlib.redirect_stdout(sys.stderr):
    try:
        shown(0, "text")
    except PackageError as error:
        print(error.message)
"""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert "stdout cannot be written" in ended.stderr


def test_options_of_an_original_need_one(cli):
    found = cli("generate", "p", "--tokens", "1", "--trust-code")
    assert found.exit_code == 2
    assert "--trust-code says how the original of --against is loaded" in found.err


def test_model_directory_is_told_from_a_package(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert _is_checkpoint(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    assert not _is_checkpoint(str(tmp_path))


def test_package_that_is_none_is_named(cli, tmp_path: Path):
    found = cli("generate", tmp_path / "none", "--tokens", "1", "--json")
    assert found.exit_code == 5
    assert "does not exist" in found.json["error"]["message"]

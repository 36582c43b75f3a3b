"""Paths below a directory that may not be entered: each command says so, and none is to blame."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.run_cli import Cli
from tests.handmade_package import write_package
from tests.locked import lock


@pytest.mark.parametrize(
    "command",
    [
        "bench locked/p",
        "bench package --baseline locked/p",
        "bundle locked/p -o out",
        "inline locked/p -o out.onnx",
        "inspect locked/p",
        "profile locked/p --inputs x.npz -o r.json",
        "run locked/p --inputs x.npz --outputs y.npz",
        "tune locked/p",
        "verify locked/p",
    ],
)
def test_package_that_may_not_be_looked_up_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    write_package(tmp_path / "package")
    (tmp_path / "locked").mkdir()
    monkeypatch.chdir(tmp_path)
    # Paths are looked up as they are given.
    lock(Path("locked"), monkeypatch)
    ended = cli(*command.split())
    assert "locked/p cannot be opened as a package: Permission denied" in ended.err
    assert ended.exit_code == 5


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("bench package --inputs locked/x.npz", "cannot be read as an npz file: Permission denied"),
        ("verify package --against locked/q", "against is locked/q, which is not found"),
    ],
)
def test_other_paths_are_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
):
    write_package(tmp_path / "package")
    (tmp_path / "locked").mkdir()
    monkeypatch.chdir(tmp_path)
    lock(Path("locked"), monkeypatch)
    ended = cli(*command.split())
    assert message in ended.err
    assert ended.exit_code in (2, 5)

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.system.staging import (
    StagedDirectory,
    scratch_directory,
    staged_file,
    temporary_place,
)


def test_file_appears_when_the_block_ends(tmp_path: Path):
    (tmp_path / "out").write_text("old")
    with staged_file(tmp_path / "out") as path:
        path.write_text("new")
        assert (tmp_path / "out").read_text() == "old"
    assert (tmp_path / "out").read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_permissions_of_the_file_that_was_there_are_kept(tmp_path: Path):
    (tmp_path / "out").touch(0o600)
    with staged_file(tmp_path / "out") as path:
        path.write_text("new")
    assert (tmp_path / "out").read_text() == "new"
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def test_what_is_no_file_is_not_replaced(tmp_path: Path):
    """As root anybody could make a file of /dev/null."""
    os.mkfifo(tmp_path / "out")
    with (
        pytest.raises(PackageError, match="out is no regular file"),
        staged_file(tmp_path / "out") as path,
    ):
        path.write_text("new")
    assert (tmp_path / "out").is_fifo()


def interrupt_halfway(output: Path) -> None:
    with staged_file(output) as path:
        path.write_text("half")
        raise KeyboardInterrupt


def test_file_that_was_there_survives_a_failure(tmp_path: Path):
    (tmp_path / "out").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupt_halfway(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EDQUOT, "disk full"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_what_stops_the_writing_is_named(tmp_path: Path, number: int, message: str):
    with (
        pytest.raises(PackageError, match=f"out cannot be written: {message}"),
        staged_file(tmp_path / "out"),
    ):
        raise OSError(number, "Permission denied")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_that_is_named_already_is_not_named_again(tmp_path: Path):
    """What is in between may lie on another disk than what is written."""

    def fill(path: Path) -> None:
        with staged_file(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    message = f"^{tmp_path / 'out'} cannot be written: disk full"
    with pytest.raises(PackageError, match=message), scratch_directory("between"):
        fill(tmp_path / "out")


def test_no_place_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch):
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    message = "no place for temporary files: No usable temporary directory found in"
    with pytest.raises(PackageError, match=message):
        temporary_place("between")
    with pytest.raises(PackageError, match=message), scratch_directory("between"):
        pass


@pytest.mark.parametrize(
    ("call", "number"), [("open", errno.EACCES), ("fsync", errno.EINVAL), ("fsync", errno.ENOTSUP)]
)
def test_folder_that_cannot_be_synced_is_written_to(
    tmp_path: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
):
    """It may be written to and not be read, or the file system syncs files alone."""
    real = getattr(os, call)

    def refuse(target: Path | int, *arguments: object, **options: object) -> int:
        is_parent = isinstance(target, Path) and target == tmp_path
        if is_parent or (isinstance(target, int) and stat.S_ISDIR(os.fstat(target).st_mode)):
            raise OSError(number, "planted")
        return real(target, *arguments, **options)

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with StagedDirectory(tmp_path / "out") as staged:
        (staged.path / "new").touch()
        monkeypatch.setattr(os, call, refuse)
        staged.commit()
    monkeypatch.undo()
    assert [one.name for one in tmp_path.iterdir()] == ["out"]
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["new"]


def test_folder_that_fails_to_be_synced_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "planted")

    with StagedDirectory(tmp_path / "out") as staged:
        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(PackageError, match=r"out cannot be put in place: .*planted"):
            staged.commit()


def staged_pair(output: Path) -> None:
    with StagedDirectory(output) as staged:
        for name in ("model", "weights"):
            (staged.path / name).write_text(f"new {name}")
        weights = output.with_name("out.data")
        staged.commit_files({"weights": weights, "model": output})


def contents(folder: Path) -> dict[str, str]:
    return {one.name: one.read_text() for one in folder.iterdir() if one.is_file()}


def test_files_that_belong_together_appear_together(tmp_path: Path):
    (tmp_path / "out").write_text("old model")
    (tmp_path / "out").chmod(0o600)
    staged_pair(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    assert contents(tmp_path) == {"out": "new model", "out.data": "new weights"}
    assert len(list(tmp_path.iterdir())) == 2


def test_files_that_cannot_all_be_put_in_place_leave_what_was_there(tmp_path: Path):
    (tmp_path / "out.data").write_text("old weights")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "something").touch()  # a directory is no place for a file
    with pytest.raises(PackageError, match="out cannot be put in place"):
        staged_pair(tmp_path / "out")
    assert contents(tmp_path) == {"out.data": "old weights"}
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["something"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "out.data"]

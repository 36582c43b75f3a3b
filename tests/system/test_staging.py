import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage, PackageWriter, check_package_output
from moh_deploy.system.staging import (
    StagedDirectory,
    is_hidden_name,
    kept_directory,
    remove_leftovers,
    scratch_directory,
    staged_file,
    temporary_place,
)
from tests.cli.run_cli import Cli, start_python
from tests.handmade_package import write_package
from tests.nightly import nightly


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def abandoned(target: Path, purpose: str = "partial") -> Path:
    """A directory that a killed run has left, by a name that staging gives it."""
    name = scratch_name(target)
    left = target.with_name(name.replace(".partial-", f".{purpose}-"))
    left.mkdir()
    (left / "model.onnx").touch()
    return left


def scratch_name(target: Path) -> str:
    with TemporaryDirectory() as folder, StagedDirectory(Path(folder, target.name)) as staged:
        return staged.path.name


def interrupt_halfway(output: Path) -> None:
    with staged_file(output) as path:
        path.write_text("half")
        raise KeyboardInterrupt


def test_kept_directory_stays_with_what_is_in_it_and_goes_if_that_is_nothing(tmp_path: Path):
    place = tmp_path / "build" / "fast.work"
    with kept_directory(place):
        assert place.is_dir()
    assert not place.exists()
    with kept_directory(place):
        (place / "done").touch()
    with kept_directory(place):
        assert names(place) == ["done"]


def test_kept_directory_is_for_one_process(tmp_path: Path):
    place = tmp_path / "fast.work"
    with kept_directory(place):
        with pytest.raises(PackageError, match="in use by another process"), kept_directory(place):
            pass
        assert place.is_dir()
    (tmp_path / "file").touch()
    with (
        pytest.raises(PackageError, match="cannot be made"),
        kept_directory(tmp_path / "file" / "x"),
    ):
        pass


def test_file_appears_when_the_block_ends_and_keeps_its_permissions(tmp_path: Path):
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o600)
    with pytest.raises(KeyboardInterrupt):
        interrupt_halfway(tmp_path / "out")
    assert contents(tmp_path) == {"out": "old"}
    with staged_file(tmp_path / "out") as path:
        path.write_text("new")
        assert (tmp_path / "out").read_text() == "old"
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    assert contents(tmp_path) == {"out": "new"}
    assert names(tmp_path) == ["out"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600


def test_what_is_no_file_is_not_replaced(tmp_path: Path):
    """As root anybody could make a file of /dev/null."""
    os.mkfifo(tmp_path / "out")
    with (
        pytest.raises(PackageError, match="out is no regular file"),
        staged_file(tmp_path / "out") as path,
    ):
        path.write_text("new")
    assert (tmp_path / "out").is_fifo()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EDQUOT, "disk full"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_what_stops_the_writing_is_named_once(tmp_path: Path, number: int, message: str):
    """What is in between may lie on another disk than what is written."""

    def fill(path: Path) -> None:
        with staged_file(path):
            raise OSError(number, "Permission denied")

    expected = f"^{tmp_path / 'out'} cannot be written: {message}"
    with pytest.raises(PackageError, match=expected), scratch_directory("between"):
        fill(tmp_path / "out")
    assert names(tmp_path) == []


def test_no_place_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch):
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(PackageError, match="no place for temporary files: No usable temporary"):
        temporary_place("between")


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
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_folder_that_fails_to_be_synced_is_an_error(tmp_path: Path, monkeypatch):
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


def test_files_that_belong_together_appear_together(tmp_path: Path):
    (tmp_path / "out").write_text("old model")
    (tmp_path / "out").chmod(0o600)
    staged_pair(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    assert contents(tmp_path) == {"out": "new model", "out.data": "new weights"}
    assert len(names(tmp_path)) == 2


def test_files_that_cannot_all_be_put_in_place_leave_what_was_there(tmp_path: Path):
    (tmp_path / "out.data").write_text("old weights")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "something").touch()  # a directory is no place for a file
    with pytest.raises(PackageError, match="out cannot be put in place"):
        staged_pair(tmp_path / "out")
    assert contents(tmp_path) == {"out.data": "old weights"}
    assert names(tmp_path / "out") == ["something"]
    assert names(tmp_path) == ["out", "out.data"]


# What a killed run has left.

_WRITES_FOREVER = """
import sys, time
from pathlib import Path
from moh_deploy.system.staging import StagedDirectory, staged_file
with StagedDirectory(Path(sys.argv[1])) as staged, staged_file(Path(sys.argv[2])) as file:
    (staged.path / "half").write_text("half")
    file.write_text("half")
    print(staged.path, file, sep="\\n", flush=True)
    time.sleep(600)
"""


def writer(folder: Path) -> tuple[subprocess.Popen[str], Path, Path]:
    process = start_python("-c", _WRITES_FOREVER, str(folder / "out"), str(folder / "file"))
    staged, file = (Path(process.stdout.readline().strip()) for _ in range(2))
    return process, staged, file


@pytest.mark.usefixtures("warm_processes")
def test_what_a_killed_run_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
):
    dead, *left = writer(tmp_path)
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert all(path.exists() for path in left)
    living, *kept = writer(tmp_path)
    try:
        assert not any(path.exists() for path in left)
        with StagedDirectory(tmp_path / "out") as staged, staged_file(tmp_path / "file") as file:
            assert all(path.exists() for path in kept)
            file.write_text("whole")
            staged.commit()
        assert all(path.exists() for path in kept)
        assert (tmp_path / "file").read_text() == "whole"
    finally:
        living.kill()
        living.communicate()


def test_every_writer_removes_what_is_left(tmp_path: Path):
    for target in ("package", "file"):
        left = abandoned(tmp_path / target)
    left.with_name(f"{left.name[:-8]}01234567").write_text("half")  # a file, of an earlier version
    write_package(tmp_path / "package")
    with staged_file(tmp_path / "file") as file:
        file.touch()
    assert names(tmp_path) == ["file", "package"]


def test_what_is_left_of_another_destination_stays(tmp_path: Path):
    kept = [
        abandoned(tmp_path / name) for name in ("other", "package.partial-", "packag", "a.package")
    ]
    for name in (".package.partial-1234567", ".package.partial-1234567x"):
        kept.append(tmp_path / name)
        kept[-1].mkdir()
    write_package(tmp_path / "package")
    assert all(path.is_dir() for path in kept)


def test_only_what_is_ours_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A link by such a name is not followed; what is of another user, or unlocked, stays."""
    left = abandoned(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    left.with_name(f"{left.name[:-8]}01234567").symlink_to(tmp_path / "mine")
    with monkeypatch.context() as other:
        other.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
        remove_leftovers(tmp_path / "out")
        assert left.is_dir()

    def no_locks(*_: object) -> None:
        raise OSError("no locks")

    with monkeypatch.context() as other:
        other.setattr(fcntl, "flock", no_locks)
        write_package(tmp_path / "out")
        assert left.is_dir()
    remove_leftovers(tmp_path / "out")
    assert not left.exists()
    assert names(tmp_path / "mine") == ["kept"]


def test_package_that_was_moved_aside_by_a_killed_run_comes_back(tmp_path: Path):
    """The run was killed between two renames: nothing has the package's name."""
    root = write_package(tmp_path / "package").root
    aside = abandoned(root, "replaced")
    shutil.rmtree(aside)
    root.rename(aside)
    abandoned(root)
    remove_leftovers(root)
    assert names(tmp_path) == ["package"]
    OnnxPackage.open(root)
    # Killed behind both renames: what was there before goes.
    abandoned(root, "replaced")
    remove_leftovers(root)
    assert names(tmp_path) == ["package"]


def test_directory_that_is_removed_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch):
    """Another run sees it without a lock for a moment, and takes it for a leftover."""
    lock, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            (path,) = tmp_path.iterdir()
            removed.append(path)
            path.rmdir()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with StagedDirectory(tmp_path / "out") as staged:
        assert staged.path not in removed
        assert list(tmp_path.iterdir()) == [staged.path]


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, os.fsdecode(b"\xff" * 255)])
def test_names_that_leave_no_room_are_cut(tmp_path: Path, name: str):
    root = write_package(tmp_path / name).root
    OnnxPackage.open(root)
    left = abandoned(root)
    remove_leftovers(tmp_path / (name[:-1] + "y"))
    assert left.is_dir()
    remove_leftovers(root)
    assert names(tmp_path) == [name]


def test_hidden_names_are_known(tmp_path: Path):
    with StagedDirectory(tmp_path / "a\nb") as staged:
        for purpose in ("partial", "replaced"):
            assert is_hidden_name(staged.path.name.replace("partial", purpose))
    for name in ("package", ".package", ".package.partial", "package.partial-12345678"):
        assert not is_hidden_name(name)


@nightly
def test_directory_of_a_hidden_name_is_no_package_but_for_its_writer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cli, root = Cli(capsys), write_package(tmp_path / "package").root
    left = root.rename(tmp_path / ".package.partial-01234567")
    (tmp_path / "link").symlink_to(left)
    monkeypatch.chdir(left)
    for named in (left, tmp_path / "link", Path(), left / ".." / left.name):
        with pytest.raises(PackageError, match="was never finished"):
            OnnxPackage.open(named)
    for command in ("inspect", "verify", "probe", "bisect", "tune"):
        failed = cli(command, left)
        assert failed.exit_code == 5, command
        assert "was never finished" in failed.err
    OnnxPackage.open(left, staged=True)
    assert cli("verify", left, "--staged").exit_code == 0
    assert "--staged" not in cli("verify", "--help").out


def test_loop_of_links_cannot_be_written(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    message = r"loop.* cannot be (made|written): "
    with pytest.raises(PackageError, match=message), PackageWriter(tmp_path / "loop"):
        pytest.fail("entered")
    with pytest.raises(PackageError, match=message), staged_file(tmp_path / "loop" / "file"):
        pytest.fail("entered")
    with pytest.raises(PackageError, match=message):
        check_package_output(tmp_path / "loop")

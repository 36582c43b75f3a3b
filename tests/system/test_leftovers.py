from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage, PackageWriter, check_package_output
from moh_deploy.system import staging
from moh_deploy.system.staging import (
    StagedDirectory,
    claim_directory,
    claim_file,
    hidden_sibling,
    is_hidden_name,
    remove_leftovers,
    staged_file,
)
from tests.cli.run_cli import Cli, start_python
from tests.handmade_package import write_package
from tests.nightly import nightly


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def abandoned(target: Path, purpose: staging.Purpose = "partial") -> Path:
    left = hidden_sibling(target, purpose)
    left.mkdir()
    (left / "model.onnx").touch()
    return left


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
    assert process.stdout is not None
    staged, file = (Path(process.stdout.readline().strip()) for _ in range(2))
    return process, staged, file


@pytest.mark.usefixtures("warm_processes")
def test_what_a_killed_run_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
):
    dead, *left = writer(tmp_path)
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert all(one.exists() for one in left)
    living, *kept = writer(tmp_path)
    try:
        assert not any(one.exists() for one in left)
        with StagedDirectory(tmp_path / "out") as staged, staged_file(tmp_path / "file") as file:
            assert all(one.exists() for one in kept)
            file.write_text("whole")
            staged.commit()
        assert all(one.exists() for one in kept)
        assert (tmp_path / "file").read_text() == "whole"
    finally:
        living.kill()
        living.communicate()


def test_every_writer_removes_what_is_left(tmp_path: Path):
    for target in ("package", "file"):
        abandoned(tmp_path / target)
    hidden_sibling(tmp_path / "file", "partial").write_text("half")
    write_package(tmp_path / "package")
    with staged_file(tmp_path / "file") as file:
        file.touch()
    assert names(tmp_path) == ["file", "package"]


def test_what_is_left_of_another_destination_stays(tmp_path: Path):
    kept = [
        abandoned(tmp_path / name) for name in ("other", "package.partial-", "packag", "a.package")
    ]
    kept += [tmp_path / one for one in (".package.partial-1234567", ".package.partial-1234567x")]
    kept[-1].mkdir()
    kept[-2].mkdir()
    write_package(tmp_path / "package")
    assert all(one.is_dir() for one in kept)


def test_link_of_a_hidden_name_is_not_followed(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    hidden_sibling(tmp_path / "out", "partial").symlink_to(tmp_path / "mine")
    remove_leftovers(tmp_path / "out")
    assert names(tmp_path / "mine") == ["kept"]


def test_directory_of_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = abandoned(tmp_path / "out")
    monkeypatch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
    remove_leftovers(tmp_path / "out")
    assert left.is_dir()


def test_package_that_was_moved_aside_by_a_killed_run_comes_back(tmp_path: Path):
    """The run was killed between two renames: nothing has the package's name."""
    root = write_package(tmp_path / "package").root
    root.rename(hidden_sibling(root, "replaced"))
    abandoned(root)
    remove_leftovers(root)
    assert names(tmp_path) == ["package"]
    OnnxPackage.open(root)


def test_package_that_was_replaced_and_not_removed_goes(tmp_path: Path):
    root = write_package(tmp_path / "package").root
    abandoned(root, "replaced")
    remove_leftovers(root)
    assert names(tmp_path) == ["package"]


def test_nothing_is_removed_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def none(*_: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    left = abandoned(tmp_path / "out")
    write_package(tmp_path / "out")
    assert left.is_dir()


@pytest.mark.parametrize("claim", [claim_directory, claim_file])
def test_claim_that_is_removed_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: object
):
    """Another run sees it without a lock for a moment, and takes it for a leftover."""
    lock, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            (path,) = tmp_path.iterdir()
            removed.append(path)
            path.rmdir() if path.is_dir() else path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    claimed = claim(tmp_path / "out")  # type: ignore[operator]
    assert claimed.path not in removed
    assert list(tmp_path.iterdir()) == [claimed.path]
    claimed.release()


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, os.fsdecode(b"\xff" * 255)])
def test_names_that_leave_no_room_are_cut(tmp_path: Path, name: str):
    root = write_package(tmp_path / name).root
    OnnxPackage.open(root)
    other = tmp_path / (name[:-1] + "y")
    left = abandoned(root)
    remove_leftovers(other)
    assert left.is_dir()
    remove_leftovers(root)
    assert names(tmp_path) == [name]


def test_hidden_names_are_known(tmp_path: Path):
    for purpose in ("partial", "replaced"):
        assert is_hidden_name(hidden_sibling(tmp_path / "a\nb", purpose).name)
    for name in ("package", ".package", ".package.partial", "package.partial-12345678"):
        assert not is_hidden_name(name)


@nightly
def test_directory_of_a_hidden_name_is_no_package_but_for_its_writer(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = write_package(tmp_path / "package").root
    left = hidden_sibling(root, "partial")
    root.rename(left)
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

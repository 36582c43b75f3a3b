from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from moh_deploy.system.set_aside import set_aside


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "out" / "inner").mkdir(parents=True)
    (tmp_path / "out" / "a").write_text("a")
    (tmp_path / "out" / "inner" / "b").write_text("b")
    return tmp_path / "out"


@pytest.fixture
def in_an_image(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to rename the directory, as overlayfs does where an image holds it."""
    rename = Path.rename

    def within_layers(path: Path, target: Path) -> Path:
        if path == directory:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", within_layers)


def is_whole(directory: Path) -> bool:
    content = {one: (directory / one).read_text() for one in ("a", "inner/b")}
    return content == {"a": "a", "inner/b": "b"}


def test_directory_gets_a_hidden_name(directory: Path):
    inode = directory.stat().st_ino
    claim = set_aside(directory)
    assert [claim.path] == list(directory.parent.iterdir())
    assert claim.path.stat().st_ino == inode  # it was not copied
    assert is_whole(claim.path)
    claim.release()


@pytest.mark.usefixtures("in_an_image")
def test_directory_of_a_containers_image_is_copied(directory: Path):
    claim = set_aside(directory)
    assert [claim.path] == list(directory.parent.iterdir())
    assert claim.path.name.startswith(".out.replaced-")
    assert is_whole(claim.path)
    claim.release()


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("in_an_image")
def test_directory_that_cannot_be_copied_stays(directory: Path, monkeypatch: pytest.MonkeyPatch):
    def half(source: Path, target: Path, **_: object) -> None:
        (target / "a").write_text("half")
        fail()

    monkeypatch.setattr(shutil, "copytree", half)
    with pytest.raises(OSError, match="No space left"):
        set_aside(directory)
    assert [directory] == list(directory.parent.iterdir())
    assert is_whole(directory)


@pytest.mark.usefixtures("in_an_image")
def test_directory_that_cannot_be_removed_stays_whole(
    directory: Path, monkeypatch: pytest.MonkeyPatch
):
    remove = shutil.rmtree

    def half(path: Path, **options: bool) -> None:
        if path == directory:
            (directory / "a").unlink()
            fail()
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(OSError, match="No space left"):
        set_aside(directory)
    assert [directory] == list(directory.parent.iterdir())
    assert is_whole(directory)


def test_no_lock_is_left_where_it_cannot_be_renamed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Path, "rename", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No space left"):
        set_aside(directory)
    assert len(os.listdir("/proc/self/fd")) == before

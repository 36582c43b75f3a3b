from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_file import is_plain_name, open_regular, read_bytes, read_text


def a_socket(path: Path) -> None:
    # The path of a socket may be no longer than some hundred bytes.
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "it is a named pipe, expected a regular file"),
    "directory": (Path.mkdir, "it is a directory"),
    "zeros": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "socket": (a_socket, "it is a socket"),
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused_by_what_it_is(tmp_path: Path, kind: str):
    """A pipe without a writer would keep the reader waiting, and a device never ends."""
    make, message = SPECIAL[kind]
    make(tmp_path / "file")
    with pytest.raises(ConfigError, match=f"file: cannot be read: {message}"):
        read_bytes(tmp_path / "file", most_bytes=10, error=ConfigError)


def test_pipe_that_takes_the_place_of_a_file_does_not_keep_the_reader_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    regular = tmp_path / "regular"
    regular.touch()
    os.mkfifo(tmp_path / "file")
    look = os.stat
    monkeypatch.setattr(os, "stat", lambda path: look(regular))
    with pytest.raises(OSError, match="a named pipe"):
        open_regular(tmp_path / "file")


def test_file_may_hold_just_so_much(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", most_bytes=5, error=ConfigError) == b"12345"
    with pytest.raises(ConfigError, match="holds more than 4 bytes"):
        read_bytes(tmp_path / "file", most_bytes=4, error=ConfigError)


def test_file_that_says_it_is_empty_is_read_all_the_same():
    assert read_bytes(Path("/proc/self/cmdline"), most_bytes=2**20, error=ConfigError)


def test_missing_file_is_for_the_caller_to_explain(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none", most_bytes=1, error=ConfigError)


def test_name_that_no_file_can_have_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="File name too long"):
        read_bytes(tmp_path / ("x" * 5000), most_bytes=1, error=ConfigError)


def test_text_is_utf8(tmp_path: Path):
    (tmp_path / "file").write_bytes("grün".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"it is not UTF-8: .* position 2"):
        read_text(tmp_path / "file", most_bytes=10, error=ConfigError)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0b", "\ud800", "x" * 256, "ä" * 128]
)
def test_name_that_leads_elsewhere_or_cannot_be_is_not_plain(name: str):
    assert not is_plain_name(name)


@pytest.mark.parametrize("name", ["a", "..a", "model.onnx.data", "x" * 255, "ä" * 127, "\udcff"])
def test_name_of_a_file_beside_is_plain(name: str):
    assert is_plain_name(name)

import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_file import (
    content_key,
    is_plain_name,
    open_archive,
    open_regular,
    read_bytes,
    read_text,
    sha256_of_json,
)
from tests.nightly import nightly


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
    with pytest.raises(FileNotFoundError):  # what that means the caller knows
        read_bytes(tmp_path / "none", most_bytes=1, error=ConfigError)
    with pytest.raises(ConfigError, match="File name too long"):
        read_bytes(tmp_path / ("x" * 5000), most_bytes=1, error=ConfigError)
    # A file that says that it is empty.
    assert read_bytes(Path("/proc/self/cmdline"), most_bytes=2**20, error=ConfigError)


def test_text_is_utf8(tmp_path: Path):
    (tmp_path / "file").write_bytes("grün".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"it is not UTF-8: .* position 2"):
        read_text(tmp_path / "file", most_bytes=10, error=ConfigError)


def test_name_that_leads_elsewhere_or_cannot_be_is_not_plain():
    for name in ("", ".", "..", "a/b", "/a", "a\\b", "a\0b", "\ud800", "x" * 256, "ä" * 128):
        assert not is_plain_name(name), name
    for name in ("a", "..a", "model.onnx.data", "x" * 255, "ä" * 127, "\udcff"):
        assert is_plain_name(name), name


# The digest of plain JSON types depends on what they say, not on how.


def test_order_of_keys_does_not_change_the_digest_and_content_does():
    digest = sha256_of_json({"a": 1, "b": [1, 2]})
    assert digest == sha256_of_json({"b": [1, 2], "a": 1})
    assert digest != sha256_of_json({"a": 1, "b": [2, 1]})


def read(path: Path) -> dict[str, bytes]:
    with open_archive(path, error=ConfigError, what="an archive", hint="a hint") as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def write(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def patched(path: Path, at: int, content: bytes, *, local_at: int | None = None) -> Path:
    """Change a field of the first member in the table of contents, and in its own header."""
    raw = bytearray(path.read_bytes())
    table = raw.index(b"PK\x01\x02")
    raw[table + at : table + at + len(content)] = content
    if local_at is not None:
        raw[local_at : local_at + len(content)] = content
    path.write_bytes(raw)
    return path


def test_content_key_is_of_what_files_hold_and_not_of_their_names(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text("same")
    first, second = (tmp_path / name for name in ("a", "b"))
    key = content_key(first, {"options": [1, "text", None]}, first / "inner" / "file")
    assert key == content_key(second, {"options": (1, "text", None)}, second / "inner" / "file")
    others = [
        content_key(first, {"options": [2, "text", None]}, first / "inner" / "file"),
        content_key(first / "inner", {"options": [1, "text", None]}, first / "inner" / "file"),
    ]
    (second / "inner" / "file").write_text("other")
    others.append(content_key(second, {"options": [1, "text", None]}, first / "inner" / "file"))
    assert len({key, *others}) == 4


def test_content_that_is_not_known_has_no_key(tmp_path: Path):
    assert content_key(object()) is None
    assert content_key(tmp_path / "none") is None


def test_archive_is_read(tmp_path: Path):
    members = {"a": b"1", "b/c": b"2" * 1000}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert read(write(tmp_path / "a.zip", members, method)) == members


def test_encrypted_member_is_refused(tmp_path: Path):
    path = patched(write(tmp_path / "a.zip", {"a": b"1"}), 8, b"\x01\x00", local_at=6)
    with pytest.raises(ConfigError, match="cannot be read as an archive: member 'a' is encrypted"):
        read(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(tmp_path: Path, method: int):
    """LZMA takes a dictionary of up to 4 GB at the word of the file."""
    with pytest.raises(ConfigError, match=f"compressed by method {method}, expected none or"):
        read(write(tmp_path / "a.zip", {"a": b"1"}, method))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_name_that_is_there_twice_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for content in "12":
            archive.writestr("a", content)
    with pytest.raises(ConfigError, match="member 'a' is there 2 times"):
        read(tmp_path / "a.zip")


@nightly
def test_zeros_that_were_shrunk_are_refused_by_their_size(tmp_path: Path):
    zeros = bytes(2**24)
    path = write(tmp_path / "a.zip", {f"{i}": zeros for i in range(17)})
    assert path.stat().st_size < 2**19
    with pytest.raises(ConfigError, match=r"its members hold 285212672 bytes, \d{3,4} times those"):
        read(path)


def test_members_that_share_their_bytes_are_refused_by_their_size(tmp_path: Path):
    content = os.urandom(2**21)
    path = write(tmp_path / "a.zip", {"0": content}, zipfile.ZIP_STORED)
    raw = path.read_bytes()
    table, end = raw.index(b"PK\x01\x02"), raw.rindex(b"PK\x05\x06")
    entry, count = raw[table:end], 300
    entries = b"".join(entry[:46] + f"{i:1x}"[-1:].encode() + entry[47:] for i in range(count))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), table, 0)
    path.write_bytes(raw[:table] + entries + tail)
    with pytest.raises(ConfigError, match=r"is there \d+ times|its members hold 6291\d+ bytes"):
        read(path)


def test_size_that_is_not_true_is_an_error(tmp_path: Path):
    path = patched(
        write(tmp_path / "a.zip", {"a": b"12345"}), 24, struct.pack("<L", 4), local_at=22
    )
    with pytest.raises(ConfigError, match="Bad CRC-32"):
        read(path)


def test_damage_is_an_error_of_the_kind_asked_for(tmp_path: Path):
    path = write(tmp_path / "a.zip", {"a": b"12345" * 100})
    raw = path.read_bytes()
    refused = 0
    for at in range(len(raw)):
        for value in (0, 255):
            path.write_bytes(raw[:at] + bytes([value]) + raw[at + 1 :])
            try:
                read(path)
            except ConfigError:
                refused += 1
    assert refused > 50, refused  # of 224; the others change dates, the name, or nothing


def test_pipe_is_no_archive(tmp_path: Path):
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(ConfigError, match="cannot be read as an archive: it is a named pipe"):
        read(tmp_path / "a.zip")

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_file import open_archive
from tests.nightly import nightly


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

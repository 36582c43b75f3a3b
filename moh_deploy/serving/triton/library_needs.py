"""Tell what a native library needs of a machine, without loading it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from moh_deploy.errors import PackageError
from moh_deploy.system.bounded_file import read_bytes

Version = tuple[int, ...]

MOST_LIBRARY_BYTES = 2**28
_MAGIC = b"\x7fELF"
# Versions of symbols that a library needs stand as text in its table of names.
_GLIBC = re.compile(rb"\0GLIBC_(\d{1,3})\.(\d{1,3})(?:\.\d{1,3})?\0")
_MACHINES = {62: "x86_64", 183: "aarch64"}


def library_needs(library: Path) -> tuple[str, Version]:
    """Return the processor, as `platform.machine()` has it, and the oldest GNU C library.

    Raises:
        PackageError: It cannot be read, or is no library.
        FileNotFoundError: There is none.
    """
    content = read_bytes(library, most_bytes=MOST_LIBRARY_BYTES, error=PackageError)
    if len(content) < 64 or not content.startswith(_MAGIC):
        raise PackageError(f"{library} is no native library.")
    # e_machine of the ELF header; the byte before says which end comes first.
    machine = int.from_bytes(content[18:20], "big" if content[5] == 2 else "little")
    # Names follow each other directly: the zero after a name begins the next.
    found = _GLIBC.findall(content.replace(b"\0", b"\0\0"))
    versions = {(int(major), int(minor)) for major, minor in found}
    return _MACHINES.get(machine, f"machine {machine}"), max(versions, default=(2, 0))


def glibc_here() -> Version | None:
    """Return the version of this process's GNU C library; None where it has another one."""
    name, version = platform.libc_ver()
    return version_of(version) if name == "glibc" else None


def version_of(text: str) -> Version:
    """Return `(2, 36)` of `2.36`."""
    return tuple(int(part) for part in re.findall("[0-9]{1,9}", text))

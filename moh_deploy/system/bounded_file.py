"""Read files that others can write: only regular ones, and no more of them than they may hold.

A file that comes with a model may be a pipe that never ends its first read, a device that is never
through, or a hundred levels of brackets. Every reader of this project goes through this module,
`bounded_zip`, `bounded_json` or `bounded_yaml`, so that the answer to all of them is a sentence.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from moh_deploy.errors import MoHDeployError


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading if it is a regular one, without ever waiting for another process.

    Raises:
        OSError: It cannot be opened, or is none; `strerror` says what it is instead.
    """
    # Looked at first, because opening a device may do something already; and once more, because
    # another file may be there by then.
    _require_regular(path, os.stat(path))
    # Non-blocking: opening a pipe would wait for somebody to write.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        _require_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, *, most_bytes: int, error: type[MoHDeployError]) -> bytes:
    """Return all that a file holds.

    Args:
        most_bytes: What it may hold.
        error: What to raise if it cannot be read, or holds more.

    Raises:
        FileNotFoundError: There is none: what that means only the caller knows.
    """
    try:
        with open_regular(path) as file:
            # One more than allowed tells too much from just enough, without reading on.
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}.") from problem
    if len(content) > most_bytes:
        raise error(f"{path}: holds more than {most_bytes} bytes, which no such file needs.")
    return content


def read_text(path: Path, *, most_bytes: int, error: type[MoHDeployError]) -> str:
    """Return the text that a file holds, in UTF-8; as `read_bytes`."""
    content = read_bytes(path, most_bytes=most_bytes, error=error)
    try:
        return content.decode()
    except UnicodeDecodeError as problem:
        raise error(f"{path}: cannot be read: it is not UTF-8: {problem}.") from problem


def is_plain_name(name: str) -> bool:
    """Tell whether a name in a file is that of a file beside it, and can be one."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return (
        name not in ("", ".", "..")
        and not {"/", "\\", "\0"} & set(name)
        and len(encoded) <= _LONGEST_NAME_BYTES
    )


_LONGEST_NAME_BYTES = 255


def _require_regular(path: Path | str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for test, words in _KINDS if test(found.st_mode)), "of an unknown kind")
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise OSError(number, f"it is {kind}, expected a regular file", str(path))


_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)

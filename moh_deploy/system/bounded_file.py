"""Read files that others can write: only regular ones, and no more of them than they may hold.

A file that comes with a model may be a pipe that never ends its first read, a device that is never
through, or a hundred levels of brackets. Every reader of this project goes through this module,
`bounded_zip`, `bounded_json` or `bounded_yaml`, so that the answer to all of them is a sentence.
"""

import errno
import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from moh_deploy.errors import MoHDeployError


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading if it is a regular one, without ever waiting for another process.

    Raises:
        OSError: It cannot be opened, or is not a file; `strerror` says what it is instead.
    """
    # Looked at first, because opening a device may do something already; and once more, because
    # another file may be there by then.
    _require_regular(path, os.stat(path))
    # Non-blocking: opening a pipe would wait for a writer.
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
        FileNotFoundError: It is missing: only the caller knows what that means.
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


# The one digest that files are identified by.

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hex.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(content: Mapping[str, object]) -> str:
    """Return the sha256 of plain JSON types, in hex; equal content has an equal one."""
    # Sorted and without blanks.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def content_key(*parts: object) -> str | None:
    """Return a name that is the same for the same content: that of files and of directories counts
    where a part holds their paths.

    Returns:
        12 hex digits; None where the content is not known: of an object in memory, or of a file
        that cannot be read.
    """
    try:
        return sha256_of_json({"parts": _content(parts)})[:12]
    except (OSError, TypeError):
        return None


def _content(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _content(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_content(item) for item in value]
    if not isinstance(value, Path):
        return value  # `json` refuses what is no plain type.
    if not value.is_dir():
        return sha256_of(value)
    files = sorted(path for path in value.rglob("*") if path.is_file())
    return {str(path.relative_to(value)): sha256_of(path) for path in files}


# Read zip archives that others wrote: no name twice, and no more memory than the file earns.
#
# Zeros shrink to a thousandth, and members may share their bytes: a file of 6 MB can hold 6 GB.

ALWAYS_ALLOWED_BYTES = 2**28
"""What members may hold in all, however small the file is: a mask of zeros does shrink."""

MOST_RATIO = 100
"""How many bytes members may hold in all for each byte of a larger file."""

# What numpy and PyTorch write. bzip2 and LZMA shrink far better, and so would need other bounds.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 1


@contextmanager
def open_archive(
    path: Path, *, error: type[MoHDeployError], what: str, hint: str | None = None
) -> Iterator[zipfile.ZipFile]:
    """Open an archive; what goes wrong in the block while it is read is an error of it, too.

    Args:
        error: What to raise if it cannot be read.
        what: What the file should be: `an npz file`.
        hint: The next step.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            # Seeking to the end gives the size of the file.
            _check_members(archive, file.seek(0, 2))
            yield archive
    except FileNotFoundError as missing:
        raise error(f"{path} does not exist.") from missing
    except MemoryError as problem:
        raise error(f"{path} cannot be read as {what}: it does not fit into memory.") from problem
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise error(f"{path} cannot be read as {what}: {reason}.", hint=hint) from problem
    except (
        *(ValueError, EOFError, RuntimeError, OverflowError, IndexError),
        *(zipfile.BadZipFile, zlib.error),
    ) as problem:
        raise error(f"{path} cannot be read as {what}: {problem}.", hint=hint) from problem


def _check_members(archive: zipfile.ZipFile, file_bytes: int) -> None:
    members = archive.infolist()
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"member '{_printable(member.filename)}' is encrypted")
        if member.compress_type not in _METHODS:
            raise ValueError(
                f"member '{_printable(member.filename)}' is compressed by method"
                f" {member.compress_type}, expected none or deflate"
            )
    names = Counter(member.filename for member in members)
    if len(names) < len(members):
        name = names.most_common(1)[0][0]
        raise ValueError(f"member '{_printable(name)}' is there {names[name]} times")
    # The sizes that the archive's directory states, before a byte is decompressed.
    held = sum(member.file_size for member in members)
    if held > max(ALWAYS_ALLOWED_BYTES, MOST_RATIO * file_bytes):
        raise ValueError(
            f"its members hold {held} bytes, {held // max(1, file_bytes)} times those of the file;"
            f" expected at most {MOST_RATIO} times, or {ALWAYS_ALLOWED_BYTES} bytes"
        )


def _printable(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:200]

"""Read zip archives that others wrote: no name twice, and no more memory than the file earns.

Zeros shrink to a thousandth, and members may share their bytes: a file of 6 MB can hold 6 GB.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moh_deploy.errors import MoHDeployError
from moh_deploy.system.bounded_file import open_regular

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
            raise ValueError(f"member '{_shown(member.filename)}' is encrypted")
        if member.compress_type not in _METHODS:
            raise ValueError(
                f"member '{_shown(member.filename)}' is compressed by method"
                f" {member.compress_type}, expected none or deflate"
            )
    names = Counter(member.filename for member in members)
    if len(names) < len(members):
        name = names.most_common(1)[0][0]
        raise ValueError(f"member '{_shown(name)}' is there {names[name]} times")
    # The sizes that the archive's directory states, before a byte is decompressed.
    held = sum(member.file_size for member in members)
    if held > max(ALWAYS_ALLOWED_BYTES, MOST_RATIO * file_bytes):
        raise ValueError(
            f"its members hold {held} bytes, {held // max(1, file_bytes)} times those of the file;"
            f" expected at most {MOST_RATIO} times, or {ALWAYS_ALLOWED_BYTES} bytes"
        )


def _shown(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:200]

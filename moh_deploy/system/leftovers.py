"""Hidden names of what is being written, and locks that tell it from what a killed run left.

`kill -9` and a power cut let nobody clean up. Whoever writes holds a lock on what it writes, and
the system releases it when the process is gone, however it went. So the next writer to the same
place tells the dead from the living: what it can lock is nobody's, and is removed. Where the file
system has no locks nothing is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Purpose = Literal["partial", "replaced"]
"""Why a hidden name is there: it is not finished, or what was there before is about to go."""

_HIDDEN = re.compile(r"\..+\.(partial|replaced)-[0-9a-f]{8}", re.DOTALL)
# What `secrets.token_hex(4)` makes: runs to one destination at a time get names of their own.
_TOKEN = re.compile("[0-9a-f]{8}")
_LONGEST_NAME_BYTES = 255
_ADDED_BYTES = len("..replaced-") + 8


@dataclass
class Claim:
    """A file or directory of a hidden name that this process is writing.

    Attributes:
        path: Where it is.
    """

    path: Path
    _descriptor: int | None

    def release(self) -> None:
        """Give up the lock; whatever is still there may be removed by the next run."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_hidden_name(name: str) -> bool:
    """Tell whether this is a name that something has while it is written, and no longer."""
    return _HIDDEN.fullmatch(name) is not None


def hidden_sibling(target: Path, purpose: Purpose) -> Path:
    """Return a new hidden name beside a file or directory."""
    return target.with_name(f"{_prefix(target, purpose)}{secrets.token_hex(4)}")


def claim_directory(target: Path) -> Claim:
    """Make an empty directory of a hidden name.

    Raises:
        OSError: Nothing can be written there.
    """
    return _claimed(target, os.O_RDONLY | os.O_DIRECTORY, is_directory=True)


def claim_file(target: Path) -> Claim:
    """Make an empty file of a hidden name.

    Raises:
        OSError: Nothing can be written there.
    """
    return _claimed(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, is_directory=False)


def claim_existing(path: Path) -> Claim:
    """Lock a directory that is about to get a hidden name, as far as the file system can."""
    return Claim(path, _locked(path, os.O_RDONLY | os.O_DIRECTORY))


def remove_leftovers(target: Path) -> None:
    """Remove what killed runs left beside a destination.

    A run that was killed between two renames has left the destination empty, and what was there
    before under a hidden name: it is put back.
    """
    # First what was there before: it may have to go back to the destination.
    for purpose in ("replaced", "partial"):
        prefix = _prefix(target, purpose)
        with suppress(OSError):
            for entry in list(os.scandir(target.parent)):
                if entry.name.startswith(prefix) and _TOKEN.fullmatch(entry.name, len(prefix)):
                    with suppress(OSError):
                        _remove_if_dead(Path(entry.path), target, purpose)


def _remove_if_dead(path: Path, target: Path, purpose: Purpose) -> None:
    found = path.lstat()
    is_directory = stat.S_ISDIR(found.st_mode)
    # In a folder such as /tmp others may make such names: theirs are not ours to remove.
    if found.st_uid != os.geteuid() or not (is_directory or stat.S_ISREG(found.st_mode)):
        return
    descriptor = _locked(path, os.O_RDONLY | (os.O_DIRECTORY if is_directory else 0))
    if descriptor is None:
        return
    try:
        if purpose == "replaced" and not os.path.lexists(target):
            path.rename(target)
        elif is_directory:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


def _claimed(target: Path, flags: int, *, is_directory: bool) -> Claim:
    while True:
        # Made and then locked: in between another run may have taken it for a leftover, so look
        # again.
        path = hidden_sibling(target, "partial")
        if is_directory:
            path.mkdir()
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if is_directory and path.parent.is_dir():
                continue  # somebody took it for a leftover before it was locked
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # likewise, and is about to remove it
            os.close(descriptor)
            continue
        except OSError:  # no locks here: nobody else can lock it either
            return Claim(path, descriptor)
        if _is_still(path, descriptor):
            return Claim(path, descriptor)
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        there, held = path.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _locked(path: Path, flags: int) -> int | None:
    """Return a descriptor that holds the lock; None where it cannot be had."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _prefix(target: Path, purpose: Purpose) -> str:
    """Return the beginning of all hidden names of a destination; long names are cut to fit."""
    name = os.fsencode(target.name)
    room = _LONGEST_NAME_BYTES - _ADDED_BYTES
    if len(name) > room:
        # The digest keeps long names apart that differ only in what was cut.
        digest = hashlib.sha256(name).hexdigest()[:16].encode()
        name = name[: room - len(digest) - 1] + b"~" + digest
    return f".{os.fsdecode(name)}.{purpose}-"

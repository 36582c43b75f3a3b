"""Write to disk so that a reader sees the whole result or nothing.

Everything is written under a hidden name beside the destination and renamed at the end. Whatever
ends the work early, a full disk, an exception, Ctrl-C or SIGTERM, the hidden files are removed; and
where nothing could be done any more, as after `kill -9`, the next run to the same place does it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moh_deploy.errors import PackageError
from moh_deploy.system.termination import cleaned_up_on_termination, signals_held

# Hidden names of what is being written, and locks that tell it from what a killed run left.
#
# `kill -9` and a power cut let nobody clean up. Whoever writes holds a lock on what it writes, and
# the system releases it when the process is gone, however it went. So the next writer to the same
# place tells the dead from the living: what it can lock is nobody's, and is removed. Where the file
# system has no locks nothing is removed.

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


_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class StagedDirectory:
    """A directory filled in `path` that appears at `output` with `commit`, replacing what is there.

    Until then only its owner can look into it. The directory takes over the permissions of the one
    that it replaces; its files have those that the umask says.

    Args:
        output: Destination. The caller has checked that it may be replaced. Missing parents are
            made.

    Raises:
        PackageError: On leaving the block because the disk is full; on entering if nothing can be
            written there.
    """

    def __init__(self, output: Path) -> None:
        self.output = _resolved(output)
        self.path = hidden_sibling(self.output, "partial")
        self._claim: Claim | None = None
        self._mode = 0
        self._made_parents: list[Path] = []
        self._needed_bytes: int | None = None
        self._committed = False
        self._signals = ExitStack()

    def __enter__(self) -> StagedDirectory:
        self._signals.enter_context(cleaned_up_on_termination(self._discard))
        try:
            self._make_parents()
            remove_leftovers(self.output)
            self._claim = claim_directory(self.output)
            self.path = self._claim.path
            self._mode = _mode(self.path)
            # Unfinished, and perhaps a replacement of something private: its rights are known at
            # the end.
            self.path.chmod(self._mode & ~_OTHERS)
        except BaseException as error:
            self._leave()
            if isinstance(error, OSError):
                raise PackageError(f"{self.output} cannot be made: {error.strerror}.") from error
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Measured before the files go: this is what did not fit.
        # A PackageError names the disk itself: it may be another one.
        is_full = is_disk_full(error) and not isinstance(error, PackageError)
        full = self._describe_full_disk() if is_full else None
        self._leave()
        if full is not None:
            raise PackageError(full, hint="Free some space, or write to another disk.") from error

    def require_free(self, needed_bytes: int) -> None:
        """Raise a PackageError if less than `needed_bytes` is free."""
        self._needed_bytes = needed_bytes
        free_bytes = shutil.disk_usage(self.path).free
        if free_bytes < needed_bytes:
            raise PackageError(
                f"disk full: {self.output} needs {needed_bytes} bytes, {free_bytes} bytes free.",
                hint="Free some space, or write to another disk.",
            )

    def commit(self) -> None:
        """Put the directory at its destination; what was there is removed only after that.

        Raises:
            PackageError: It cannot be renamed: what was there is still there. Or it is in place,
                but what was there cannot be removed.
        """
        with signals_held():
            try:
                # What was there goes before this comes, and nothing stands at the destination in
                # between: no signal may come then.
                replaced = self._swap_in()
            except OSError as error:
                raise PackageError(f"{self.output} cannot be put in place: {error}.") from error
            if replaced is not None:
                self._remove(replaced)

    def commit_files(self, targets: Mapping[str, Path]) -> None:
        """Put files of the directory at places beside it instead, all or none of them.

        Args:
            targets: Name of each file to where it goes, in this order: what refers to others comes
                last. What is there is replaced.

        Raises:
            PackageError: One of them cannot be put in place: all is as it was.
        """
        for name in targets:
            sync_file(self.path / name)
        aside: list[tuple[Path | None, Path]] = []
        placed: list[Path] = []
        with signals_held():
            try:
                for name, target in targets.items():
                    file, earlier = self.path / name, self._set_aside(target)
                    aside.append((earlier, target))
                    if earlier is not None:
                        file.chmod(_mode(earlier))
                    file.replace(target)
                    placed.append(target)
                    _sync_directory(target.parent)
            except OSError as error:
                for place in placed:
                    place.unlink()
                for kept, place in aside:
                    if kept is not None:
                        kept.rename(place)
                raise PackageError(f"{target} cannot be put in place: {error}.") from error

    def _set_aside(self, target: Path) -> Path | None:
        """Move a file that is at a place into the directory, which is removed in the end."""
        # A directory stays, and is in the way: what is in it is nobody's to remove.
        if not target.is_file():
            return None
        # Beside what is staged, so that it is a rename and needs no room.
        earlier = self.path / f"earlier.{target.name}"
        target.rename(earlier)
        return earlier

    def _swap_in(self) -> Claim | None:
        """Return where what was there is now."""
        self.path.chmod(_mode(self.output) if self.output.is_dir() else self._mode)
        _sync_directory(self.path)
        replaced = None
        if self.output.is_dir() and any(self.output.iterdir()):
            # Locked before it is hidden: another run must not take it for a leftover.
            replaced = claim_existing(self.output)
        try:
            if replaced is not None:
                replaced.path = self.output.rename(hidden_sibling(self.output, "replaced"))
            self.path.rename(self.output)
        except OSError:
            if replaced is not None:
                # Back to what it was: an error must not cost the earlier result.
                if replaced.path != self.output:
                    replaced.path.rename(self.output)
                replaced.release()
            raise
        self._committed = True
        # A rename is on disk only when the directory around it is.
        _sync_directory(self.output.parent)
        return replaced

    def _remove(self, replaced: Claim) -> None:
        try:
            shutil.rmtree(replaced.path)
        except OSError as error:
            raise PackageError(
                f"{self.output} is written, but what was there before cannot be removed:"
                f" {error.strerror}.",
                hint=f"Remove it: {replaced.path}",
            ) from error
        finally:
            replaced.release()

    def _make_parents(self) -> None:
        missing = [parent for parent in self.output.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self._made_parents.append(parent)

    def _leave(self) -> None:
        self._discard()
        if self._claim is not None:
            self._claim.release()
        self._signals.close()

    def _discard(self) -> None:
        if self._committed:
            return
        with signals_held():
            shutil.rmtree(self.path, ignore_errors=True)
            for parent in reversed(self._made_parents):
                _remove_if_empty(parent)

    def _describe_full_disk(self) -> str:
        written_bytes = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        free_bytes = shutil.disk_usage(self.path).free
        needed = "" if self._needed_bytes is None else f"{self._needed_bytes} bytes needed, "
        return (
            f"disk full while writing {self.output}: {needed}{written_bytes} bytes written,"
            f" {free_bytes} bytes free."
        )


@contextmanager
def scratch_directory(name: str) -> Iterator[Path]:
    """Yield a directory for what is needed in between; it is removed however the block ends.

    Args:
        name: What errors call it.

    Raises:
        PackageError: There is no place for temporary files, or its disk is full.
    """
    with StagedDirectory(temporary_place(name)) as scratch:
        yield scratch.path


def temporary_place(name: str) -> Path:
    """Return where to stage what is never put in place.

    Raises:
        PackageError: There is no place for temporary files.
    """
    try:
        return Path(tempfile.gettempdir(), name)
    except FileNotFoundError as error:
        raise PackageError(f"there is no place for temporary files: {error.strerror}.") from error


@contextmanager
def staged_file(output: Path) -> Iterator[Path]:
    """Yield a path to write to; the file appears at `output` if the block ends without exception.

    It takes over the permissions of a file that it replaces.

    Raises:
        PackageError: It cannot be written, the disk is full, or what is there is no regular file: a
            device, a FIFO or a directory is not replaced.
    """
    target = _resolved(output)
    claims: list[Claim] = []
    with cleaned_up_on_termination(lambda: _drop(claims)):
        try:
            if target.exists() and not target.is_file():
                raise PackageError(f"{output} is no regular file: it is not replaced.")
            remove_leftovers(target)
            claims.append(claim_file(target))
            partial = claims[0].path
            yield partial
            sync_file(partial)
            if target.is_file():
                partial.chmod(_mode(target))
            partial.replace(target)
        except OSError as error:
            problem = "disk full" if is_disk_full(error) else error.strerror or str(error)
            raise PackageError(f"{output} cannot be written: {problem}.") from error
        finally:
            with signals_held():
                _drop(claims)


def _drop(claims: list[Claim]) -> None:
    for claim in claims:
        with contextlib.suppress(OSError):
            claim.path.unlink(missing_ok=True)
        claim.release()


def _resolved(output: Path) -> Path:
    try:
        return output.resolve()
    except (OSError, RuntimeError) as error:  # before Python 3.13 a loop of links is a RuntimeError
        problem = error.strerror if isinstance(error, OSError) else "it is a loop of links"
        raise PackageError(f"{output} cannot be written: {problem}.") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file that is never changed in place at another one, without a copy if the disk can."""
    # Who makes the result writable must not make a source writable that is to stay as it is.
    if os.access(source, os.W_OK):
        with suppress(OSError):
            # A hard link takes neither time nor room.
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


def sync_file(path: Path) -> None:
    """Return once the file's content has reached the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _sync_directory(path: Path) -> None:
    """Return once the names in a directory have reached the disk, where that can be waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # who may write to a directory need not be allowed to read it
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems, such as VirtualBox's shared folders, sync no directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _remove_if_empty(directory: Path) -> None:
    # Somebody else may have put something there meanwhile: theirs to keep.
    with suppress(OSError):
        directory.rmdir()


# No space left, a file beyond what the file system or a limit allows, a quota that is used up.
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# numpy.ndarray.tofile reports a short write without an errno.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether a full disk is what ends the work.

    It looks through the whole chain: writers wrap the OSError in exceptions of their own.
    """
    while error is not None:
        if isinstance(error, OSError) and (error.errno in _FULL or _SHORT_WRITE.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False

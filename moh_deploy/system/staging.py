"""Write to disk so that a reader sees the whole result or nothing.

Everything is written into a hidden directory beside the destination and renamed at the end.
Whatever ends the work early, a full disk, an exception, Ctrl-C or SIGTERM, that directory is
removed. After `kill -9` or a power cut the next run to the same place removes it: a writer
holds a lock, which the system releases with the process, so what can be locked was left. Where
the file system has no locks nothing is removed.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import Literal

from moh_deploy.errors import PackageError
from moh_deploy.system.termination import cleaned_up_on_termination, signals_held

# Why a hidden name is there: it is not finished, or what was there before is about to go.
_Purpose = Literal["partial", "replaced"]
_HIDDEN = re.compile(r"\..+\.(partial|replaced)-[0-9a-f]{8}", re.DOTALL)
_TOKEN = re.compile("[0-9a-f]{8}")
_LONGEST_NAME_BYTES = 255

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class StagedDirectory:
    """A directory filled in `path` that appears at `output` with `commit`, replacing what is there.

    Until then only its owner can look into it. The directory takes over the permissions of the one
    that it replaces; its files have those that the umask says.

    Args:
        output: Destination. The caller has checked that it may be replaced. Missing parents are
            made, and stay.

    Raises:
        PackageError: On leaving the block because the disk is full; on entering if nothing can be
            written there.
    """

    path: Path

    def __init__(self, output: Path) -> None:
        self.output = _resolved(output)
        self._mode = 0
        self._needed_bytes: int | None = None
        self._open = ExitStack()

    def __enter__(self) -> StagedDirectory:
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.path, self._mode = self._open.enter_context(_hidden_directory(self.output))
        except OSError as error:
            raise PackageError(f"{self.output} cannot be made: {error.strerror}.") from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._open:
            # A PackageError names the disk itself: it may be another one.
            if not is_disk_full(error) or isinstance(error, PackageError):
                return
            # Measured before the files go: this is what did not fit.
            files = [file for file in self.path.rglob("*") if file.is_file()]
            written_bytes = sum(file.stat().st_size for file in files)
            free_bytes = shutil.disk_usage(self.path).free
        needed = "" if self._needed_bytes is None else f"{self._needed_bytes} bytes needed, "
        raise PackageError(
            f"disk full while writing {self.output}: {needed}{written_bytes} bytes written,"
            f" {free_bytes} bytes free.",
            hint=_FREE_SPACE,
        ) from error

    def require_free(self, needed_bytes: int) -> None:
        """Raise a PackageError if less than `needed_bytes` is free."""
        self._needed_bytes = needed_bytes
        free_bytes = shutil.disk_usage(self.path).free
        if free_bytes < needed_bytes:
            raise PackageError(
                f"disk full: {self.output} needs {needed_bytes} bytes, {free_bytes} bytes free.",
                hint=_FREE_SPACE,
            )

    def commit(self) -> None:
        """Put the directory at its destination; what was there is removed only after that.

        Raises:
            PackageError: It cannot be renamed: what was there is still there. Or it is in place,
                but what was there cannot be removed.
        """
        # Nothing stands at the destination between the two renames: no signal may come then.
        with signals_held():
            try:
                earlier = self._swap_in()
            except OSError as error:
                raise PackageError(f"{self.output} cannot be put in place: {error}.") from error
            try:
                if earlier is not None:
                    shutil.rmtree(earlier)
            except OSError as error:
                raise PackageError(
                    f"{self.output} is written, but what was there before cannot be removed:"
                    f" {error.strerror}.",
                    hint=f"Remove it: {earlier}",
                ) from error

    def _swap_in(self) -> Path | None:
        """Return the place of what was there before; None where that was nothing."""
        self.path.chmod(_mode(self.output) if self.output.is_dir() else self._mode)
        _sync_directory(self.path)
        earlier = None
        if self.output.is_dir() and any(self.output.iterdir()):
            # Locked before it is hidden: another run must not take it for a leftover.
            with suppress(OSError):
                self._open.callback(os.close, _locked(self.output))
            earlier = self.output.rename(_hidden_sibling(self.output, "replaced"))
        try:
            self.path.rename(self.output)
        except OSError:
            if earlier is not None:
                earlier.rename(self.output)
            raise
        _sync_directory(self.output.parent)
        return earlier

    def commit_files(self, targets: Mapping[str, Path]) -> None:
        """Put files of the directory at places beside it instead, none of them if one cannot be.

        Args:
            targets: Name of each file to where it goes, in this order: what refers to others comes
                last. A file that is there is replaced, and its permissions stay.

        Raises:
            PackageError: A directory or a device is in the way, or one cannot be renamed.
        """
        for name, target in targets.items():
            sync_file(self.path / name)
            if target.exists() and not target.is_file():
                raise PackageError(f"{target} cannot be put in place: it is no regular file.")
        with signals_held():
            try:
                for name, target in targets.items():
                    _replace_file(self.path / name, target)
            except OSError as error:
                raise PackageError(f"{target} cannot be put in place: {error}.") from error


_FREE_SPACE = "Free some space, or write to another disk."


@contextmanager
def staged_file(output: Path) -> Iterator[Path]:
    """Yield a path to write to; the file appears at `output` if the block ends without exception.

    It takes over the permissions of a file that it replaces.

    Raises:
        PackageError: It cannot be written, the disk is full, or what is there is no regular file: a
            device, a FIFO or a directory is not replaced.
    """
    target = _resolved(output)
    try:
        if target.exists() and not target.is_file():
            raise PackageError(f"{output} is no regular file: it is not replaced.")
        with _hidden_directory(target) as (folder, _):
            partial = folder / target.name
            yield partial
            sync_file(partial)
            _replace_file(partial, target)
    except OSError as error:
        problem = "disk full" if is_disk_full(error) else error.strerror or str(error)
        raise PackageError(f"{output} cannot be written: {problem}.") from error


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


@contextmanager
def kept_directory(path: Path) -> Iterator[None]:
    """Hold a directory that stays if the job ends early, so that the next run goes on in it.

    It is removed at the end if nothing is in it.

    Raises:
        PackageError: It cannot be made, or another process holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackageError(f"{path} cannot be made: {error.strerror}.") from error
    descriptor = None
    try:
        descriptor = _locked(path)
    except BlockingIOError as error:
        raise PackageError(
            f"{path} is in use by another process, which writes the same output.",
            hint="Wait for it, or name another --output.",
        ) from error
    except OSError:
        pass  # The file system has no locks.
    try:
        yield
    finally:
        with suppress(OSError):  # It holds something.
            path.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def temporary_place(name: str) -> Path:
    """Return where to stage what is never put in place.

    Raises:
        PackageError: There is no place for temporary files.
    """
    try:
        return Path(tempfile.gettempdir(), name)
    except FileNotFoundError as error:
        raise PackageError(f"there is no place for temporary files: {error.strerror}.") from error


def is_hidden_name(name: str) -> bool:
    """Tell whether this is a name that something has while it is written, and no longer."""
    return _HIDDEN.fullmatch(name) is not None


def sync_file(path: Path) -> None:
    """Return once the file's content has reached the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether a full disk is what ends the work.

    It looks through the whole chain: writers wrap the OSError in exceptions of their own.
    """
    while error is not None:
        if isinstance(error, OSError) and (error.errno in _FULL or _SHORT_WRITE.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


# No space left, a file beyond what the file system or a limit allows, a quota that is used up.
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# numpy.ndarray.tofile reports a short write without an errno.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


@contextmanager
def _hidden_directory(target: Path) -> Iterator[tuple[Path, int]]:
    """Yield a new directory beside a destination, and the permissions that the umask gives it.

    Only its owner can look into it. What is still there in the end is removed.
    """
    with ExitStack() as stack:
        remove_leftovers(target)
        path, descriptor = _claimed(target)
        if descriptor is not None:
            stack.callback(os.close, descriptor)

        def remove() -> None:
            with signals_held():
                shutil.rmtree(path, ignore_errors=True)

        stack.callback(remove)
        stack.enter_context(cleaned_up_on_termination(remove))
        mode = _mode(path)
        path.chmod(mode & ~_OTHERS)
        yield path, mode


def _claimed(target: Path) -> tuple[Path, int | None]:
    """Return a new directory and the descriptor that locks it; None where there are no locks."""
    while True:
        path = _hidden_sibling(target, "partial")
        path.mkdir()
        # Made and then locked: in between another run may have taken it for a leftover.
        try:
            descriptor = _locked(path)
        except (FileNotFoundError, BlockingIOError):
            continue
        except OSError:  # another process cannot lock it either
            return path, None
        if path.is_dir():
            return path, descriptor
        os.close(descriptor)


def remove_leftovers(target: Path) -> None:
    """Remove what killed runs left beside a destination.

    A run that was killed between two renames has left the destination empty, and what was there
    before under a hidden name: it is put back.
    """
    # First what was there before: it may have to go back to the destination.
    for purpose in ("replaced", "partial"):
        prefix = _prefix(target, purpose)
        with suppress(OSError):
            for name in os.listdir(target.parent):
                if name.startswith(prefix) and _TOKEN.fullmatch(name, len(prefix)):
                    with suppress(OSError):
                        _remove_if_dead(target.with_name(name), target, purpose)


def _remove_if_dead(path: Path, target: Path, purpose: _Purpose) -> None:
    # In a folder such as /tmp others may make such names: theirs are not ours to remove. Links and
    # pipes have other modes.
    found = path.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
    if found.st_uid != os.geteuid() or not is_ours:
        return
    descriptor = _locked(path)
    try:
        if purpose == "replaced" and not os.path.lexists(target):
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Return a descriptor that holds the lock of a file or directory.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: There is nothing of that name, or the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _hidden_sibling(target: Path, purpose: _Purpose) -> Path:
    """Return a new hidden name beside a destination: runs at one time get names of their own."""
    return target.with_name(f"{_prefix(target, purpose)}{secrets.token_hex(4)}")


def _prefix(target: Path, purpose: _Purpose) -> str:
    """Return the beginning of all hidden names of a destination; long names are cut to fit."""
    name = os.fsencode(target.name)
    room = _LONGEST_NAME_BYTES - len("..replaced-") - 8
    if len(name) > room:
        # The digest keeps long names apart that differ only in what was cut.
        digest = hashlib.sha256(name).hexdigest()[:16].encode()
        name = name[: room - len(digest) - 1] + b"~" + digest
    return f".{os.fsdecode(name)}.{purpose}-"


def _replace_file(file: Path, target: Path) -> None:
    if target.exists():
        file.chmod(_mode(target))
    file.replace(target)
    # A rename is on disk only when the directory around it is.
    _sync_directory(target.parent)


def _resolved(output: Path) -> Path:
    try:
        return output.resolve()
    except (OSError, RuntimeError) as error:  # before Python 3.13 a loop of links is a RuntimeError
        problem = error.strerror if isinstance(error, OSError) else "it is a loop of links"
        raise PackageError(f"{output} cannot be written: {problem}.") from error


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _sync_directory(path: Path) -> None:
    """Return once the names in a directory have reached the disk, where that can be waited for."""
    with suppress(PermissionError):  # who may write to a directory need not be allowed to read it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some file systems, such as VirtualBox's shared folders, sync no directory.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)

"""Decide where a command may write: which directories and files it replaces."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.errors import ConfigError, MoHDeployError, PackageError

_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class DirectoryKind:
    """A kind of directory that a command writes, and how an earlier one is known."""

    noun: str  # what people call it: `package`
    manifest: str  # name of the file by which it is known
    is_manifest: Callable[[Path], bool]  # tells whether a file is one, of whatever version
    files: frozenset[str]  # names of all files that it may hold


@dataclass(frozen=True)
class FileKind:
    """A kind of file that a command writes, and how an earlier one is known."""

    noun: str  # what people call it: `ONNX model`
    is_one: Callable[[Path], bool]  # tells whether a file is one

    @classmethod
    def beginning_with(cls, noun: str, pattern: bytes) -> FileKind:
        """Return a kind that is known by how its files begin."""

        def is_one(path: Path) -> bool:
            with path.open("rb") as file:
                return re.match(pattern, file.read(_HEAD_BYTES), re.DOTALL) is not None

        return cls(noun, is_one)


def check_output(output: Path, kind: DirectoryKind) -> None:
    """Check that a directory may be written here, before any long work.

    Raises:
        PackageError: It is a file, a directory of another kind, or a place that cannot be written
            or replaced.
    """
    try:
        output.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # explained below, if it cannot be made
    except OSError as error:
        raise PackageError(f"{output} cannot be made: {error.strerror}.") from error
    if output.is_dir():
        _check_replaceable(output, kind)
    elif output.exists():
        raise PackageError(f"{output} is a file, expected a directory to write the {kind.noun} to.")
    # Missing parents are made later, by the writer; what matters is the one to make them in.
    parent = next(place for place in output.resolve().parents if place.exists())
    if not parent.is_dir():
        raise PackageError(f"{output} cannot be made: {parent} is not a directory.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PackageError(f"{output} cannot be made: no permission to write to {parent}.")


def check_file_output(output: Path, kind: FileKind | None, *, reads: Iterable[Path] = ()) -> None:
    """Check that a file may be written here, before any long work.

    An empty file may be replaced by any kind.

    Args:
        kind: What is written; None where what is there is read before it is replaced.
        reads: The files that it is made of.

    Raises:
        PackageError: It is a directory, its folder is missing, or what is there is of
            another kind.
        ConfigError: It is one of those that are read.
    """
    # Unlike those of `Path`, these never raise where a directory may not be entered.
    if os.path.isdir(output):
        raise PackageError(f"{output} cannot be written: it is a directory.")
    folder = os.path.dirname(os.path.realpath(output))
    if not os.path.isdir(folder):
        raise PackageError(f"{output} cannot be written: there is no directory {folder}.")
    # What is no regular file, such as a device, is never replaced: see `staged_file`.
    if not os.path.isfile(output):
        return
    if any(os.path.exists(read) and output.samefile(read) for read in reads):
        raise ConfigError(
            f"{output} is to be written, and is read as well: it would be lost.",
            hint="Name another file.",
        )
    if kind is None or not os.path.getsize(output):
        return
    try:
        is_known = kind.is_one(output)
    except (OSError, MoHDeployError):  # what cannot be read is not known to be ours
        is_known = False
    if not is_known:
        raise PackageError(
            f"{output} exists and is not {_a(kind.noun)}: it will not be overwritten.",
            hint="Name another file, or move this one elsewhere.",
        )


def _check_replaceable(output: Path, kind: DirectoryKind) -> None:
    """Refuse a directory with anything that would be lost, or that is meant to stay."""
    found = {entry.name for entry in output.iterdir()}
    if found and not kind.is_manifest(output / kind.manifest):
        raise PackageError(
            f"{output} exists and is not {_a(kind.noun)}: it will not be overwritten.",
            hint=f"Name a new or empty directory, or an earlier {kind.noun}, with --output.",
        )
    # Replacing removes the whole directory: notes beside a model must not go.
    foreign = sorted(found - kind.files)
    if foreign:
        raise PackageError(
            f"{output} holds '{foreign[0]}', which is not part of {_a(kind.noun)}: it will not be"
            " replaced.",
            hint="Move it elsewhere, or name another --output.",
        )
    # Renaming could replace what is read-only, but it was made so in order to stay.
    rights = {output: os.W_OK | os.X_OK, **{output / name: os.W_OK for name in sorted(found)}}
    for path, needed in rights.items():
        if not os.access(path, needed):
            raise PackageError(
                f"{output} is read-only, so it will not be replaced: no permission to write to"
                f" {path}. Expected a writable {kind.noun}: make it one with"
                f" `chmod -R u+w {output}`, or work on a copy."
            )
    # Both would be renamed away: a mount point cannot be, and a shell would stand in a directory
    # that is gone. `ismount` says no of every link, also of one to a mount point.
    if os.path.ismount(output.resolve()) or output.samefile(Path.cwd()):
        raise PackageError(
            f"{output} is the current directory or a mount point, which cannot be replaced in one"
            " step.",
            hint=f"Write to a directory inside it: --output {output / kind.noun}.",
        )


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"

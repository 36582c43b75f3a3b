"""The type of every option and argument that names a file: one that can be the name of a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import click


class _FilePath(click.Path):
    """A path, there or not; one that the system cannot even look up is wrong usage."""

    name = "path"

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        try:
            os.stat(value)
        except OSError as error:
            if error.errno in _NO_NAMES:
                self.fail(f"'{shortened_path(os.fspath(value))}': {error.strerror}.", param, ctx)
        return super().convert(value, param, ctx)


def shortened_path(path: str) -> str:
    """Return a path as an error shows it."""
    return path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}..."


FILE_PATH = _FilePath(path_type=Path)

_NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)
_LONGEST_SHOWN = 100

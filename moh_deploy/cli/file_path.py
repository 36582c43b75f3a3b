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
        path = os.fspath(value)
        try:
            os.stat(path)
        except OSError as error:
            if error.errno in _NO_NAMES:
                shown = path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}..."
                self.fail(f"'{shown}': {error.strerror}.", param, ctx)
        return super().convert(value, param, ctx)


FILE_PATH = _FilePath(path_type=Path)
NAME_OR_PATH = _FilePath(path_type=str)  # `functions`, or a file


_NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)
_LONGEST_SHOWN = 100

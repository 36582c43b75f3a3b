"""What a baseline file calls files and directories: the same from wherever they are named."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAMED = re.compile(r"(package|engine|ONNX model|original model|expected outputs in) (.+)")


def path_key(named: Path | str, file: Path) -> str:
    """Return a path as seen from the directory of a baseline file.

    A checkout has both, wherever it lies. Where the two have nothing in common but the root it is
    absolute. Links are not followed: `releases/last` stays that, whatever it leads to.
    """
    path, folder = os.path.abspath(named), os.path.abspath(file.parent)
    try:
        common = os.path.commonpath([path, folder])
    except ValueError:  # on other drives
        return Path(path).as_posix()
    shown = path if common == Path(path).anchor else os.path.relpath(path, folder)
    return Path(shown).as_posix()


def reference_key(reference: str, file: Path) -> str:
    """Return the words of a report for a reference, with such paths in them."""
    found = _NAMED.fullmatch(reference)
    if found is None:
        return reference
    what, named = found.groups()
    parts = [path_key(part, file) if os.path.exists(part) else part for part in named.split(", ")]
    return f"{what} {', '.join(parts)}"

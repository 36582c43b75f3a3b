"""Directories that may not be entered, whoever runs the tests: root may enter all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def lock(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Refuse to look up what lies in a directory, as the system does without a right to enter."""
    found = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if not isinstance(path, int) and folder in Path(os.fsdecode(path)).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return found(path, **options)

    patch.setattr(os, "stat", stat)

"""Python in a process of its own that finds this very moh_deploy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import moh_deploy
from moh_deploy.errors import BackendError

_MOST_CHARACTERS = 400


def child_environment() -> dict[str, str]:
    """Return this process's environment, with moh_deploy on Python's path.

    It may be on this process's path without being installed.
    """
    home = str(Path(moh_deploy.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def json_from(arguments: Sequence[str], *, what: str, task: str | None = None) -> dict[str, Any]:
    """Run Python in another process, and return the JSON object that it prints, however it ends.

    Args:
        arguments: Of Python.
        what: The process, as the subject of a sentence.
        task: What it reads on stdin; None for nothing.

    Raises:
        BackendError: It printed none: the sentence has how it ended, and the last that it said.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        input=task,
        stdin=subprocess.DEVNULL if task is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=child_environment(),
    )
    try:
        return cast("dict[str, Any]", json.loads(done.stdout))
    except json.JSONDecodeError as error:
        raise BackendError(
            f"{what} ended with {how_it_ended(done.returncode)}:"
            f" {done.stderr.strip()[-_MOST_CHARACTERS:]}"
        ) from error


def how_it_ended(return_code: int) -> str:
    """Return `SIGSEGV` or `status 3`."""
    return signal.Signals(-return_code).name if return_code < 0 else f"status {return_code}"

"""Python in a process of its own that finds this very moh_deploy."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import moh_deploy


def child_environment() -> dict[str, str]:
    """Return this process's environment, with moh_deploy on Python's path.

    It may be on this process's path without being installed.
    """
    home = str(Path(moh_deploy.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def how_it_ended(return_code: int) -> str:
    """Return `SIGSEGV` or `status 3`."""
    return signal.Signals(-return_code).name if return_code < 0 else f"status {return_code}"

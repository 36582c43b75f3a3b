"""Where the command `moh-deploy`, and `python -m moh_deploy`, begin.

Nothing is imported at first but what hears an interrupt: the rest takes a moment to load, and
Ctrl-C within it must end the command as at any other time.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_EXIT_INTERRUPTED = 130  # as a shell reports SIGINT


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        with _ended_by_an_interrupt():
            from moh_deploy.cli import main as command
        if isinstance(sys.stdout, io.TextIOWrapper):
            # The name of a file need not be text: what stdout cannot encode it shows by its number.
            sys.stdout.reconfigure(errors="backslashreplace")
        command()
    except KeyboardInterrupt:  # before the command, or after it, has its own answer to one
        _end(signal.SIGINT, None)


@contextmanager
def _ended_by_an_interrupt() -> Iterator[None]:
    """Let SIGINT end the process at once: while modules are loaded there is nothing to clean up.

    A KeyboardInterrupt would not do: an extension module makes an ImportError of it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # as under nohup
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()

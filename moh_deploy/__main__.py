"""Where the command `moh-deploy`, and `python -m moh_deploy`, begin.

Nothing is imported at first that Python has not loaded itself: the rest takes a moment, and Ctrl-C
within it must end the command as at any other time.
"""

import os
import sys

_EXIT_INTERRUPTED = 130  # as a shell reports SIGINT


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        _load()()
    except KeyboardInterrupt:  # before the command, or after it, has its own answer to one
        _exit_interrupted()


def _load() -> "Callable[[], object]":
    """Return the command; an interrupt meanwhile ends the process, as there is nothing to clean up.

    A KeyboardInterrupt would not do: an extension module makes an ImportError of it.
    """
    import signal

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this: `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (as long as the process)
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup
    if is_heard:
        signal.signal(signal.SIGINT, _exit_interrupted)
    import io

    from moh_deploy.system.isolated_process import collect_rarely

    collect_rarely()
    from moh_deploy.cli import main as command

    if isinstance(sys.stdout, io.TextIOWrapper):
        # The name of a file need not be text: what stdout cannot encode it shows by its number.
        sys.stdout.reconfigure(errors="backslashreplace")
    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command


def _exit_interrupted(*_: object) -> None:
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(_EXIT_INTERRUPTED)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

if __name__ == "__main__":
    main()

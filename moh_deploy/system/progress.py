"""Tell the user what a long job is doing, and the caller how long each step took."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """The interface that a job reports its steps to."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """Enclose one step, named by what is being done: `tracing the model`."""


class SilentProgress:
    """Show nothing; keep the seconds of each step.

    Attributes:
        seconds: Step name to wall time, in the order the steps began. Steps of equal name add up.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step and show it while it runs."""
        # Before the step runs, so that the order is that of beginnings, nested steps included.
        self.seconds.setdefault(name, 0.0)
        start = time.perf_counter()
        try:
            with self._shown(name):
                yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def _shown(self, name: str) -> AbstractContextManager[object]:
        return nullcontext()


class TerminalProgress(SilentProgress):
    """Show the running step with a spinner on stderr."""

    def _shown(self, name: str) -> AbstractContextManager[object]:
        # Imported when first shown: most runs have no terminal.
        from rich.console import Console

        return Console(stderr=True).status(f"{name} ...")


class LogProgress(SilentProgress):
    """Show a step in a log, which no spinner fits: a line once it has taken long.

    Args:
        patience_s: How long a step may take without a line.
    """

    def __init__(self, patience_s: float = 30) -> None:
        super().__init__()
        self._patience_s = patience_s

    @contextmanager
    def _shown(self, name: str) -> Iterator[None]:
        line = f"{name} takes more than {self._patience_s:g} s ...\n"
        timer = threading.Timer(self._patience_s, sys.stderr.write, (line,))
        timer.daemon = True  # the process does not wait for it where it ends within the step
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def seconds_text(seconds: Mapping[str, float]) -> str:
    """Say where time went: a line for each step, with its seconds and its share of all steps.

    Args:
        seconds: Of steps that do not lie within each other.
    """
    total = sum(seconds.values())
    rows = [*seconds.items(), ("all steps", total)]
    return "\n".join(
        f"{taken:8.2f} s {taken / total if total else 0:5.0%}  {name}" for name, taken in rows
    )


def progress_for_terminal(*, quiet: bool) -> SilentProgress:
    """Return a progress that shows its steps on stderr, as a terminal or a log has them.

    Args:
        quiet: Show nothing.
    """
    if quiet:
        return SilentProgress()
    return TerminalProgress() if sys.stderr.isatty() else LogProgress()

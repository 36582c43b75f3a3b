"""Tell the user what a long job is doing, and the caller how long each step took."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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

    def reached(self, part: float, detail: str) -> None:
        """Show how much of the running phase is done, see `bar_for_terminal`.

        Args:
            part: From 0 to 1.
            detail: What is done next.
        """

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


class BarProgress(SilentProgress):
    """Show a job of several phases as one bar; all other steps are details beside it.

    Args:
        phases: Step name of each phase to its usual share of the work, in their order.
        show: Shows the share that is done, from 0 to 1, the phase and a detail.
    """

    # What takes less was found, and not done: it says nothing of the time that the rest takes.
    _FOUND_S = 0.5

    def __init__(
        self,
        phases: Mapping[str, float],
        show: Callable[[float, str, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._phases, self._show, self._clock = phases, show, clock
        self._phase, self._detail = "", ""
        self._done, self._at = 0.0, clock()
        self._worked, self._worked_s = 0.0, 0.0

    def reached(self, part: float, detail: str) -> None:
        """Move the bar within the running phase."""
        names = list(self._phases)
        before = sum(self._phases[name] for name in names[: names.index(self._phase)])
        self._move((before + part * self._phases[self._phase]) / sum(self._phases.values()), detail)

    def left_s(self) -> float | None:
        """Return the seconds that the rest will take, as fast as before; None if nothing tells."""
        if not self._worked:
            return None
        rest_s = self._worked_s / self._worked * (1 - self._done)
        return max(0.0, rest_s - (self._clock() - self._at))

    @contextmanager
    def _shown(self, name: str) -> Iterator[None]:
        if name not in self._phases:
            before = self._detail
            self._move(self._done, name)
            yield
            self._move(self._done, before)
            return
        self._phase = name
        self.reached(0, "")
        yield
        self.reached(1, "")

    def _move(self, done: float, detail: str) -> None:
        now = self._clock()
        if done > self._done:
            if now - self._at > self._FOUND_S:
                self._worked += done - self._done
                self._worked_s += now - self._at
            self._done, self._at = done, now
        self._detail = detail
        self._show(self._done, self._phase, detail)


@contextmanager
def bar_for_terminal(phases: Mapping[str, float]) -> Iterator[SilentProgress]:
    """Yield a progress for a job of several phases: a bar with the phase, the share that is done
    and the time left where stderr is a terminal, as a log has it elsewhere.

    Args:
        phases: Step name of each phase to its usual share of the work, in their order.
    """
    if not sys.stderr.isatty():
        yield LogProgress()
        return
    from rich import progress as rich
    from rich.console import Console

    class TimeLeft(rich.ProgressColumn):
        def render(self, task: rich.Task) -> str:
            left_s = shown_by.left_s()
            if left_s is None:
                return ""
            return f"{left_s / 60:.0f} min left" if left_s >= 90 else f"{left_s:.0f} s left"

    columns = (
        rich.BarColumn(24),
        rich.TaskProgressColumn(),
        rich.TextColumn("{task.description}", markup=False),
        TimeLeft(),
        rich.TextColumn("{task.fields[detail]}", style="dim", markup=False),
    )
    bar = rich.Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=1.0, detail="")

    def show(done: float, phase: str, detail: str) -> None:
        bar.update(task, completed=done, description=phase, detail=detail)

    shown_by = BarProgress(phases, show)
    with bar:
        yield shown_by


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

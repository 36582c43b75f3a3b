"""Notice runs that do not end: nobody can stop one, and its instance answers nobody meanwhile."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from moh_deploy.serving.metrics import Family, Series

# Limit what one client's bad requests can write into a log.


class LimitedLog:
    """Writes to stderr, at most so many entries in a while, and then how many it left out.

    Several threads may write at the same time.

    Args:
        most: Entries that are written in each period; further ones are counted.
        period_s: How long a period is. The first entry begins one, and so does the first behind it.
    """

    def __init__(self, most: int = 20, period_s: float = 60.0) -> None:
        self._most, self._period_s = most, period_s
        self._lock = threading.Lock()
        self._entries = 0
        self._ends = 0.0

    def write(self, entry: str) -> None:
        """Write an entry of whole lines, or count it."""
        with self._lock:
            now = time.monotonic()
            if now >= self._ends:
                self._tell()
                self._ends = now + self._period_s
            self._entries += 1
            if self._entries > self._most:
                return
        print(entry, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Say how many entries were left out since the last period began."""
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        left_out, self._entries = self._entries - self._most, 0
        if left_out > 0:
            print(
                f"warning: {left_out} more errors within {self._period_s:g} s were not shown.",
                file=sys.stderr,
                flush=True,
            )


class RunsUnderWay:
    """The runs that have begun and not ended. Each instance notes its own, on its own thread.

    Args:
        instances: How many there are.
        hung_s: A run that lasts longer is taken for hung.
        clock: Seconds that only go forward.
    """

    def __init__(
        self, instances: int, hung_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.hung_s = hung_s
        self._clock = clock
        self._begun: list[float | None] = [None] * instances

    def begins(self, instance: int) -> None:
        """Note that a run begins; one that the instance had before has ended."""
        self._begun[instance] = self._clock()

    def ends(self, instance: int) -> None:
        """Note that the instance is idle."""
        self._begun[instance] = None

    def hung(self, times: float = 1.0) -> int:
        """Return how many runs have lasted longer than so many times what a run may last."""
        now = self._clock()
        return sum(begun is not None and now - begun > times * self.hung_s for begun in self._begun)

    @property
    def are_all_hung(self) -> bool:
        """Whether no instance is left that could answer."""
        return self.hung() == len(self._begun)

    def families(self) -> tuple[Family, ...]:
        """Return how many hang, as a metric."""
        return (
            Family(
                "moh_hung_runs",
                "Runs that have lasted longer than anybody waits: their instances answer nobody.",
                "gauge",
                (Series({}, self.hung()),),
            ),
        )

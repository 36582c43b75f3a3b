"""Notice a fallback level whose runs take too long: the 99th percentile over a window of time."""

from __future__ import annotations

import math
from collections import deque

from moh_deploy.serving.guard.policy import LatencySection
from moh_deploy.serving.guard.state_machine import Evidence

_MOST_RUNS = 10_000  # of a busy server the last runs are enough: they took about a second


class LatencyWindow:
    """The recent runs of one level.

    Args:
        limit_ms: Limit of the 99th percentile; None: no time is too long.
        rule: The window, and the least number of runs.
    """

    def __init__(self, limit_ms: float | None, rule: LatencySection) -> None:
        self._limit_ms = limit_ms
        self._rule = rule
        self._runs: deque[tuple[float, float]] = deque()  # end, milliseconds
        self._slow = 0

    def add(self, now: float, seconds: float) -> bool:
        """Add a run, and tell whether the runs in the window are too slow."""
        limit, runs = self._limit_ms, self._runs
        if limit is None:
            return False
        runs.append((now, 1e3 * seconds))
        self._slow += 1e3 * seconds > limit
        while runs[0][0] < now - self._rule.window_s or len(runs) > _MOST_RUNS:
            self._slow -= runs.popleft()[1] > limit
        # The percentile is above the limit if more than 1 of 100 runs are: nothing is sorted.
        return len(runs) >= self._rule.min_samples and self._slow > len(runs) // 100

    def figures(self) -> Evidence:
        """Return the 99th percentile of the runs in the window, its limit, and their number."""
        times = sorted(milliseconds for _, milliseconds in self._runs)
        p99_ms = times[math.ceil(0.99 * len(times)) - 1] if times else None
        return {"p99_ms": p99_ms, "limit_ms": self._limit_ms, "runs": len(times)}

    def clear(self) -> None:
        """Forget all runs."""
        self._runs.clear()
        self._slow = 0

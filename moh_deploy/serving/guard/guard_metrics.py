"""The counters of a guard, and the metrics that show them."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping

from moh_deploy.serving.guard.policy import LatencySection
from moh_deploy.serving.guard.state_machine import Evidence, LevelState, Transition
from moh_deploy.serving.metrics import Family, Series

# Notice a fallback level whose runs take too long: the 99th percentile over a window of time.

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


_FAMILIES = (
    ("moh_mode", ("rung",), "1 for the fallback level that serves."),
    ("moh_rung_open", ("rung",), "1 for a fallback level that is open, 0.5 for a half-open one."),
    ("moh_guard_transitions_total", ("from", "to", "reason"), "Changes of the level that serves."),
    ("moh_fallback_requests_total", ("reason", "rung"), "Requests that a lower level answered."),
    ("moh_refused_requests_total", ("reason",), "Requests that no level could answer rightly."),
    ("moh_guard_comparisons_total", ("kind", "outcome"), "Answers that were computed again."),
)
_REFUSALS = ("non-finite outputs", "non-finite gates", "kernel error", "no rung")
_OPENNESS = {"closed": 0.0, "half-open": 0.5, "open": 1.0}


class GuardMetrics:
    """The counters of a guard. Its caller holds a lock."""

    def __init__(self) -> None:
        self.fallbacks: Counter[tuple[str, ...]] = Counter()
        # Shown as 0 from the beginning: an alert sees growth, and would miss the first.
        self.refused: Counter[tuple[str, ...]] = Counter({(reason,): 0 for reason in _REFUSALS})
        self.compared: Counter[tuple[str, ...]] = Counter()
        self.last_reason = ""  # why another level serves than before
        self._transitions: Counter[tuple[str, ...]] = Counter()

    def changed(self, change: Transition) -> None:
        """Count a transition."""
        if change.reason == "wrong known answer":
            self.compared["known answer", "other"] += 1
        if change.mode_from != change.mode_to:
            self._transitions[change.mode_from, change.mode_to, change.reason] += 1
            self.last_reason = change.reason

    def families(self, states: Mapping[str, LevelState], mode: str) -> tuple[Family, ...]:
        """Return the metrics, with the state of each level and the level that serves."""
        counts: list[Mapping[tuple[str, ...], float]] = [
            {(name,): float(name == mode) for name in states},
            {(name,): _OPENNESS[state] for name, state in states.items()},
            *(self._transitions, self.fallbacks, self.refused, self.compared),
        ]
        return tuple(_family(*head, n) for head, n in zip(_FAMILIES, counts, strict=True))


def _family(
    name: str, labels: tuple[str, ...], text: str, counts: Mapping[tuple[str, ...], float]
) -> Family:
    series = (Series(dict(zip(labels, key, strict=True)), n) for key, n in counts.items())
    return Family(name, text, "counter" if name.endswith("_total") else "gauge", tuple(series))

"""Decide whether one rung of the ladder may serve: a circuit breaker, without clock or threads.

    closed     it serves; its answers and their times are counted
    open       it does not, until its cool-down is over
    half-open  it does not serve either: it is run beside the rung that does, and compared

A breaker that opens again soon after it closed cools down longer each time, so a rung that fails
off and on is tried less and less often. Whoever calls hands in the time.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class BreakerLimits:
    """Limits that open a breaker, and that close it again.

    Attributes:
        faults: So many wrong answers within `window_s` open it.
        window_s: For how many seconds a wrong answer counts.
        p99_ms: What 99 of 100 runs take at most, in milliseconds; None: no time opens it.
        latency_window_s: For how many seconds the time of a run counts.
        min_samples: Fewer runs than that in the window say nothing of their times.
        recover_share: A run that is to close the breaker takes at most this share of `p99_ms`: what
            opens and what closes it are apart.
        cool_down_s: How long it stays open at first.
        back_off: What the cool-down is multiplied with each time that it opens again.
        longest_cool_down_s: What it grows to.
        stable_s: Closed for so long, the next cool-down is as short as the first.
        probes: So many right answers in a row close it.
    """

    faults: int = 1
    window_s: float = 60.0
    p99_ms: float | None = None
    latency_window_s: float = 60.0
    min_samples: int = 200
    recover_share: float = 0.8
    cool_down_s: float = 30.0
    back_off: float = 2.0
    longest_cool_down_s: float = 600.0
    stable_s: float = 300.0
    probes: int = 5


_MOST_TIMES = 10_000
"""Of a busy server the last runs are enough: a window of theirs is a second."""


class Breaker:
    """The breaker of one rung. Times are seconds of any clock that only goes forward."""

    def __init__(self, limits: BreakerLimits) -> None:
        self.limits = limits
        self.state: State = "closed"
        self.open_until = -math.inf
        self._good_probes = 0
        self._openings = 0
        self._closed_at = -math.inf
        self._faults: deque[float] = deque()
        self._times: deque[tuple[float, float]] = deque()  # when, how many milliseconds
        self._slow = 0

    def tick(self, now: float) -> bool:
        """Become half-open if the cool-down is over, and tell whether it did."""
        if self.state != "open" or now < self.open_until:
            return False
        self.state, self._good_probes = "half-open", 0
        return True

    def failed(self, now: float) -> bool:
        """Count a wrong answer, and tell whether there were enough of them to open."""
        self._faults.append(now)
        while self._faults[0] < now - self.limits.window_s:
            self._faults.popleft()
        return len(self._faults) >= self.limits.faults

    def took(self, now: float, seconds: float) -> bool:
        """Count the time of a right answer, and tell whether runs are too slow."""
        limit = self.limits.p99_ms
        if limit is None:
            return False
        self._times.append((now, 1e3 * seconds))
        self._slow += 1e3 * seconds > limit
        oldest = now - self.limits.latency_window_s
        while self._times[0][0] < oldest or len(self._times) > _MOST_TIMES:
            self._slow -= self._times.popleft()[1] > limit
        # The 99th percentile is above the limit if more than 1 of 100 runs are: nothing is sorted.
        runs = len(self._times)
        return runs >= self.limits.min_samples and self._slow > runs - math.ceil(0.99 * runs)

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile of the times in the window; None without any."""
        times = sorted(time for _, time in self._times)
        return times[math.ceil(0.99 * len(times)) - 1] if times else None

    @property
    def runs(self) -> int:
        """How many times are in the window."""
        return len(self._times)

    def open(self, now: float) -> float:
        """Stop serving, and return for how many seconds."""
        limits = self.limits
        if self.state == "closed" and now - self._closed_at >= limits.stable_s:
            self._openings = 0
        # The longest is reached long before a power becomes too large for a float.
        grown = limits.cool_down_s * limits.back_off ** min(self._openings, 32)
        cool_down = max(limits.cool_down_s, min(limits.longest_cool_down_s, grown))
        self.state, self.open_until = "open", now + cool_down
        self._openings += 1
        self._faults.clear()
        self._times.clear()
        self._slow = 0
        return cool_down

    def is_slow(self, seconds: float) -> bool:
        """Tell whether a run beside the serving rung is too slow to close the breaker."""
        limit = self.limits.p99_ms
        return limit is not None and 1e3 * seconds > self.limits.recover_share * limit

    def probed(self, now: float) -> bool:
        """Count a right answer of a half-open rung, and tell whether there were enough to close."""
        self._good_probes += 1
        if self._good_probes >= self.limits.probes:
            self.close(now)
        return self.state == "closed"

    def close(self, now: float) -> None:
        """Serve again."""
        self.state, self._closed_at = "closed", now

"""Time several ways to do one thing, taking turns, and tell a difference from noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Samples = tuple[float, ...]
"""Milliseconds of one contestant, one a round."""

Contestants = Mapping[str, Callable[[], object]]

Measure = Callable[[str, Contestants], dict[str, Samples]]
"""Times contestants; the first argument says what they all do: a layer's path, or `whole model`."""

# What takes less is called several times for one sample: reading a clock takes time, too.
_LEAST_SAMPLE_SECONDS = 1e-3
_LEAST_ROUNDS, _MOST_ROUNDS = 7, 501


@dataclass(frozen=True)
class Stopwatch:
    """Times contestants that take turns.

    Attributes:
        clock: Returns seconds. CPU time says what one thread does, whatever else the machine does;
            what several threads do shows on the wall only.
        name: `CPU` or `wall`.
        min_seconds: A comparison takes at least so long, by the clock on the wall.
    """

    clock: Callable[[], float]
    name: str
    min_seconds: float

    @classmethod
    def for_threads(cls, threads: int | None, min_seconds: float) -> Stopwatch:
        """Return the clock that fits a number of threads."""
        if threads == 1:
            return cls(time.process_time, "CPU", min_seconds)
        return cls(time.perf_counter, "wall", min_seconds)

    def __call__(self, what: str, contestants: Contestants) -> dict[str, Samples]:
        """Time the contestants: each once a round, in an order that rotates; see `Measure`."""
        repeats = {name: self._repeats(call) for name, call in contestants.items()}
        samples: dict[str, list[float]] = {name: [] for name in contestants}
        names, start = list(contestants), time.perf_counter()
        for number in range(_MOST_ROUNDS):
            for offset in range(len(names)):
                name = names[(number + offset) % len(names)]
                samples[name].append(self._sample(contestants[name], repeats[name]))
            if number + 1 >= _LEAST_ROUNDS and time.perf_counter() - start >= self.min_seconds:
                break
        return {name: tuple(ms) for name, ms in samples.items()}

    def _repeats(self, call: Callable[[], object]) -> int:
        call()  # The first one allocates.
        seconds = min(self._sample(call, 1) for _ in range(3)) / 1e3
        return max(1, math.ceil(_LEAST_SAMPLE_SECONDS / max(seconds, 1e-6)))

    def _sample(self, call: Callable[[], object], repeats: int) -> float:
        start = self.clock()
        for _ in range(repeats):
            call()
        return (self.clock() - start) / repeats * 1e3


@dataclass(frozen=True)
class Ratio:
    """How the times of two contestants compare.

    Attributes:
        value: Median of the ratios of rounds.
        low: The true median is above this, with 95 % certainty.
        high: And below this.
    """

    value: float
    low: float
    high: float

    @property
    def is_faster(self) -> bool:
        """The first takes less time than the second, beyond noise."""
        return self.high < 1

    @property
    def is_slower(self) -> bool:
        """The first takes more time than the second, beyond noise."""
        return self.low > 1


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Compare two contestants round by round: what disturbs a round mostly disturbs both.

    Source: the confidence interval of a median by order statistics (sign test).
    """
    ratios = sorted(a / b for a, b in zip(first, second, strict=True))
    count = len(ratios)
    # Of n ratios, about n/2 +- 0.98 sqrt(n) lie below the true median in 95 of 100 cases.
    outside = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    return Ratio(median(ratios), ratios[outside], ratios[count - 1 - outside])


def weighted_sum(samples: Sequence[Samples], weights: Sequence[float]) -> Samples:
    """Add up the times of one contestant on several inputs, round by round."""
    rounds = zip(*samples, strict=False)  # The slowest inputs had the fewest rounds.
    return tuple(
        sum(weight * ms for weight, ms in zip(weights, one, strict=True)) for one in rounds
    )

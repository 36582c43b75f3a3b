"""Time several ways to do one thing, taking turns, and tell a difference from noise."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from moh_deploy.errors import ConfigError

# Wait until threads that look for work have gone to sleep.

# Of one core. A process that only sleeps uses less than this share, one spinning thread all of it.
_IDLE_SHARE = 0.1
# Longer than the 200 ms for which threads of Intel's OpenMP spin; whatever still runs then is no
# idle thread, and would never end.
_SETTLING_MOST_SECONDS = 0.3


def settle(
    pause_seconds: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    wall: Callable[[], float] = time.perf_counter,
    cpu: Callable[[], float] = time.process_time,
) -> None:
    """Sleep until this process has done nothing for so long, once at least.

    Threads spin for some milliseconds of CPU time, which is longer on the wall where they have to
    share a core; those of Intel's OpenMP for 200 ms. After 300 ms the run starts anyway.
    """
    end = wall() + _SETTLING_MOST_SECONDS
    while True:
        # `process_time` counts all threads of this process, so it shows those that spin while this
        # one sleeps.
        start, used = wall(), cpu()
        sleep(pause_seconds)
        now = wall()
        if now >= end or cpu() - used <= _IDLE_SHARE * (now - start):
            return


TimeSamples = tuple[float, ...]
"""Milliseconds of one candidate, one a round."""

Calls = Mapping[str, Callable[[], object]]
"""Name of each candidate to a call that runs it."""

Measure = Callable[[str, Calls], dict[str, TimeSamples]]
"""Times candidates; the first argument says what they all do: a layer's path, or `whole model`."""

Clock = Callable[[], float]
"""Returns seconds."""

# The true median lies between the smallest and the largest of five samples with only 94 %
# certainty, of six with 97 %: fewer rounds could not give the intervals of `_median`.
_LEAST_ROUNDS = 7
_MOST_SECONDS = 3600
_MOST_THREADS = 2**15
# Idle threads of ONNX Runtime wait by spinning, and would take a core from the next candidate.
_SETTLE_SECONDS = 5e-3
# A call of so many times `refill_seconds` fills the caches early on in the sample itself.
_LONG = 50


def check_timing(threads: int | None, **seconds: float) -> None:
    """Refuse what nothing can be timed with.

    Args:
        threads: Threads within an operator; None for as many as the runtime chooses.
        seconds: How long something is to take, by the name of its option.

    Raises:
        ConfigError: A number is out of its range.
    """
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise ConfigError(f"threads is {threads}, expected 1 to {_MOST_THREADS}.")
    for name, value in seconds.items():
        if not 0 <= value <= _MOST_SECONDS:
            raise ConfigError(f"{name} is {value:g} s, expected 0 to {_MOST_SECONDS}.")


def settle_seconds(threads: int | None) -> float:
    """Return the seconds of pause between candidates of so many threads each.

    Several threads look for work for a while before they sleep.
    """
    return 0.0 if threads == 1 else _SETTLE_SECONDS


@dataclass(frozen=True)
class Turns:
    """Times candidates that take turns: each once a round, in an order that is drawn each round."""

    clocks: tuple[Clock, ...]  # all are read around the same calls, the first one closest to them
    min_seconds: float  # rounds go on for at least so long, by the clock on the wall
    warmup_seconds: float = 0.0  # the candidates run for so long before, untimed
    # What takes less, by the first clock, is called several times for one sample: reading a clock
    # takes time, too.
    least_sample_seconds: float = 1e-3
    most_rounds: int = 501  # there are no more rounds than these
    # Nothing has run for so long before a turn, if there are several candidates: idle threads of
    # the last one may still look for work.
    settle_seconds: float = 0.0
    # Then the candidate runs for so long, untimed, and once at least, if there are several: caches
    # hold what the last one had. What takes 50 times as long does not.
    refill_seconds: float = 0.0

    def __call__(self, candidates: Calls) -> dict[str, tuple[TimeSamples, ...]]:
        """Return for each candidate its samples by each clock."""
        # A single candidate disturbs no other and keeps its own caches: no pause, no refilling.
        turns = {name: self._turn(call, len(candidates) > 1) for name, call in candidates.items()}
        start = time.perf_counter()
        while time.perf_counter() - start < self.warmup_seconds:
            for call in candidates.values():
                call()
        samples: dict[str, list[TimeSamples]] = {name: [] for name in candidates}
        names, start, order = list(candidates), time.perf_counter(), random.Random(0)
        for number in range(self.most_rounds):
            # Drawn anew: a candidate that always ran after another would find the same in the
            # caches. The seed is fixed, so that two measurements differ in noise alone.
            for name in order.sample(names, len(names)):
                samples[name].append(turns[name]())
            if number + 1 >= _LEAST_ROUNDS and time.perf_counter() - start >= self.min_seconds:
                break
        # From one tuple of clocks a round to one tuple of rounds a clock.
        return {name: tuple(zip(*rounds, strict=True)) for name, rounds in samples.items()}

    def _turn(self, call: Callable[[], object], has_others: bool) -> Callable[[], TimeSamples]:
        """Return a call that runs a candidate's turn: a pause, refilling of caches, one sample."""
        call()  # The first one allocates.
        # The fastest of three: a disturbed call would look long, and be repeated too rarely. Never
        # 0, by which `repeats` could not be computed.
        seconds = max(min(self._sample(call, 1)[0] for _ in range(3)) / 1e3, 1e-6)
        repeats = max(1, math.ceil(self.least_sample_seconds / seconds))
        is_long = seconds > _LONG * self.refill_seconds
        untimed = 0 if is_long else math.ceil(self.refill_seconds / seconds)

        def turn() -> TimeSamples:
            if has_others and self.settle_seconds:
                settle(self.settle_seconds)
            for _ in range(untimed if has_others else 0):
                call()
            return self._sample(call, repeats)

        return turn

    def _sample(self, call: Callable[[], object], repeats: int) -> TimeSamples:
        """Return milliseconds of one call by each clock."""
        # Read in reverse, so that the first clock is read last before the calls and first after
        # them, and measures no reading of the others.
        starts = [clock() for clock in reversed(self.clocks)]
        for _ in range(repeats):
            call()
        ends = [clock() for clock in self.clocks]
        return tuple(
            (end - start) / repeats * 1e3 for start, end in zip(reversed(starts), ends, strict=True)
        )


@dataclass(frozen=True)
class Stopwatch:
    """Times candidates that take turns by one clock."""

    # CPU time says what one thread does, whatever else the machine does; what several threads do
    # shows on the wall only.
    clock: Clock
    name: str  # `CPU` or `wall`
    min_seconds: float  # a comparison takes at least so long, by the clock on the wall
    settle_seconds: float = 0.0  # nothing runs for so long before a turn

    @classmethod
    def for_threads(
        cls, threads: int | None, min_seconds: float, *, on_gpu: bool = False
    ) -> Stopwatch:
        """Return a stopwatch by CPU time for one thread, by time on the wall for more or a GPU."""
        if threads == 1 and not on_gpu:
            return cls(time.process_time, "CPU", min_seconds)
        return cls(time.perf_counter, "wall", min_seconds, settle_seconds(threads))

    def __call__(self, what: str, candidates: Calls) -> dict[str, TimeSamples]:
        """Time the candidates; see `Measure`."""
        turns = Turns((self.clock,), self.min_seconds, settle_seconds=self.settle_seconds)
        times = turns(candidates)
        return {name: samples for name, (samples,) in times.items()}


@dataclass(frozen=True)
class Ratio:
    """The time of one candidate over that of another."""

    value: float  # median of the ratios of rounds
    low: float  # the true median is above this, with 95 % certainty
    high: float  # and below this

    @property
    def is_faster(self) -> bool:
        """The first takes less time than the second, beyond noise."""
        return self.high < 1

    @property
    def is_slower(self) -> bool:
        """The first takes more time than the second, beyond noise."""
        return self.low > 1


@dataclass(frozen=True)
class TimeDifference:
    """The time of one candidate minus that of another, in milliseconds."""

    value: float  # median of the differences of rounds
    low: float  # the true median is above this, with 95 % certainty
    high: float  # and below this


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Compare two candidates round by round: what disturbs a round mostly disturbs both."""
    # The median of ratios, not the ratio of medians: slow drift of the clock rate cancels out.
    return Ratio(*_median([a / b for a, b in zip(first, second, strict=True)]))


def difference(first: Sequence[float], second: Sequence[float]) -> TimeDifference:
    """Compare two candidates round by round: the first one's time minus the second one's."""
    return TimeDifference(*_median([a - b for a, b in zip(first, second, strict=True)]))


def _median(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, and the interval in which the true one is with 95 % certainty.

    Source: the confidence interval of a median by order statistics (sign test).
    """
    values = sorted(values)
    count = len(values)
    # How many of n samples lie below the true median is binomial (n, 1/2), of standard deviation
    # sqrt(n) / 2: within n/2 +- 1.96 sqrt(n) / 2 in 95 of 100 cases. The half is for whole numbers.
    outside = max(0, math.floor(count / 2 - 0.5 - 0.98 * math.sqrt(count)))
    return median(values), values[outside], values[count - 1 - outside]


def weighted_sum(samples: Sequence[TimeSamples], weights: Sequence[float]) -> TimeSamples:
    """Add up the times of one candidate on several inputs, round by round."""
    rounds = zip(*samples, strict=False)  # The slowest inputs had the fewest rounds.
    return tuple(
        sum(weight * ms for weight, ms in zip(weights, round_, strict=True)) for round_ in rounds
    )

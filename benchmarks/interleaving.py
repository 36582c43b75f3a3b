"""Candidates take turns, so that a machine that slows down slows all of them."""

import gc
import math
import random
import time
from collections.abc import Callable, Sequence
from statistics import median

Call = Callable[[], object]

# Short calls are repeated within one measurement until it takes about this long.
_SLICE_SECONDS = 0.02
_SETTLE_SECONDS = 0.005
_LONG_SECONDS = 0.1


def interleaved_ms(calls: Sequence[Call], *, threads: int, rounds: int) -> list[list[float]]:
    """Time calls in turn, in an order drawn each round, after two runs that are not counted.

    As in `moh-deploy bench` a turn begins with a run that is not timed, since caches hold what the
    last candidate had, unless it takes so long that this does not matter.

    Returns:
        For each call the milliseconds that it took once, in each round: of CPU time on one thread,
        by the clock on the wall on several.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds, order = [_seconds(call) for call in calls], random.Random(0)
    runs_ms: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for index in order.sample(range(len(calls)), len(calls)):
            runs_ms[index].append(_time(calls[index], seconds[index], clock))
    return runs_ms


def interleaved_figures(calls: Sequence[Call], *, threads: int, rounds: int) -> list[float]:
    """Time calls in turn and return the figure of each, in milliseconds."""
    runs_ms = interleaved_ms(calls, threads=threads, rounds=rounds)
    return [figure(ms, threads) for ms in runs_ms]


def figure(runs_ms: Sequence[float], threads: int) -> float:
    """CPU time by its median; wall time, which others only lengthen, by its minimum."""
    return median(runs_ms) if threads == 1 else min(runs_ms)


def _seconds(call: Call) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _time(call: Call, seconds: float, clock: Callable[[], float]) -> float:
    time.sleep(_SETTLE_SECONDS)  # Threads of the last candidate may still look for work.
    if seconds < _LONG_SECONDS:
        call()
    count = max(1, math.ceil(_SLICE_SECONDS / seconds))
    gc.disable()
    try:
        start = clock()
        for _ in range(count):
            call()
        return (clock() - start) / count * 1e3
    finally:
        gc.enable()

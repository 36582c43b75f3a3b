"""Wait until threads that look for work have gone to sleep."""

from __future__ import annotations

import time
from collections.abc import Callable

# Of one core. A process that only sleeps uses less than this share, one spinning thread all of it.
_IDLE_SHARE = 0.1
# Longer than the 200 ms for which threads of Intel's OpenMP spin; whatever still runs then is no
# idle thread, and would never end.
_MOST_SECONDS = 0.3


def settle(
    pause_seconds: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    wall: Callable[[], float] = time.perf_counter,
    cpu: Callable[[], float] = time.process_time,
) -> None:
    """Sleep until this process has done nothing for so long, once at least.

    Threads spin for some milliseconds of CPU time, which is longer on the wall where they have to
    share a core; those of Intel's OpenMP for 200 ms. After 300 ms nobody waits any more.
    """
    end = wall() + _MOST_SECONDS
    while True:
        # `process_time` counts all threads of this process, so it shows those that spin while this
        # one sleeps.
        start, used = wall(), cpu()
        sleep(pause_seconds)
        now = wall()
        if now >= end or cpu() - used <= _IDLE_SHARE * (now - start):
            return

"""Count the health of every server's process: requests by status, errors, hung runs."""

import math
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import accumulate

from moh_deploy.serving.metrics import Exemplar, Family, Series, Trace, single

_EDGES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, math.inf)

# Shown as 0 from the beginning: an alert sees what grows, and would miss the first.
NO_REQUESTS = Counter({200: 0, 400: 0, 500: 0})


def requests_family(codes: Mapping[int, int]) -> Family:
    """Return the metric of requests by status, the same in every server."""
    return Family(
        "moh_requests_total",
        "Inference requests, by the HTTP status of their answer; 499: gone before.",
        "counter",
        tuple(Series({"code": str(code)}, count) for code, count in sorted(codes.items())),
    )


class StatusCounts:
    """Counts inference requests. Several threads may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes = NO_REQUESTS.copy()
        self._slots = [0] * len(_EDGES_S)
        self._seconds = 0.0
        self._exemplars: dict[float, Exemplar] = {}

    def note(self, status: int, seconds: float, trace: Trace | None = None) -> None:
        """Count a request that was answered with a status after so many seconds."""
        slot = bisect_left(_EDGES_S, seconds)
        with self._lock:
            self._codes[status] += 1
            self._slots[slot] += 1
            self._seconds += seconds
            if trace is not None and trace.is_sampled:
                self._exemplars[_EDGES_S[slot]] = Exemplar(trace.trace_id, seconds, time.time())

    def families(self) -> tuple[Family, ...]:
        """Return what was counted so far."""
        with self._lock:
            buckets = dict(zip(_EDGES_S, accumulate(self._slots), strict=True))
            codes, exemplars = dict(self._codes), dict(self._exemplars)
            taken = Series({}, self._seconds, buckets, exemplars)
        return (
            requests_family(codes),
            Family(
                "moh_request_seconds",
                "From the headers of an inference request to its answer.",
                "histogram",
                (taken,),
            ),
        )


class LimitedLog:
    """Writes to stderr, at most so many entries in a while, and then how many it left out.

    So one client's bad requests fill no log. Several threads may write at the same time.

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

    Nothing can stop a run that hangs, and its instance answers no client meanwhile.

    Args:
        hung_s: A run that lasts longer is taken for hung.
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
        """Tell whether no instance is left that could answer."""
        return self.hung() == len(self._begun)

    def families(self) -> tuple[Family, ...]:
        """Return how many hang, as a metric."""
        text = "Runs that have lasted longer than clients wait: their instances do not answer."
        return (single("moh_hung_runs", "gauge", self.hung(), text),)

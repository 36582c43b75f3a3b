"""Count requests by how they ended, and how long they took."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

from moh_deploy.serving.metrics import Exemplar, Family, Series
from moh_deploy.serving.telemetry.trace_context import Trace

_EDGES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, math.inf)


class StatusCounts:
    """Counts inference requests. Several threads may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: Counter[int] = Counter()
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
            codes, exemplars = sorted(self._codes.items()), dict(self._exemplars)
            taken = Series({}, self._seconds, buckets, exemplars)
        return (
            Family(
                "moh_requests_total",
                "Inference requests, by the HTTP status of their answer; 499: gone before.",
                "counter",
                tuple(Series({"code": str(code)}, count) for code, count in codes),
            ),
            Family(
                "moh_request_seconds",
                "From the headers of an inference request to its answer.",
                "histogram",
                (taken,),
            ),
        )

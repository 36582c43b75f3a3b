"""Count requests by how they ended, and how long they took."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate

from moh_deploy.serving.metrics import Family, Series

_EDGES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, math.inf)

NO_REQUESTS = Counter({200: 0, 400: 0, 500: 0})
"""Shown as 0 from the beginning: an alert sees what grows, and would miss the first."""


def requests_family(codes: Mapping[int, int]) -> Family:
    """Return the metric of requests by status, the same in every server."""
    return Family(
        "moh_requests_total",
        "Inference requests, by the HTTP status of their answer; 499: gone before.",
        "counter",
        tuple(Series({"code": str(code)}, count) for code, count in sorted(codes.items())),
    )


class StatusCounts:
    """Counts inference requests; is used on the event loop alone."""

    def __init__(self) -> None:
        self._codes = NO_REQUESTS.copy()
        self._slots = [0] * len(_EDGES_S)
        self._seconds = 0.0

    def note(self, status: int, seconds: float) -> None:
        """Count a request that was answered with a status after so many seconds."""
        self._codes[status] += 1
        self._slots[bisect_left(_EDGES_S, seconds)] += 1
        self._seconds += seconds

    def families(self) -> tuple[Family, ...]:
        """Return what was counted so far."""
        buckets = dict(zip(_EDGES_S, accumulate(self._slots), strict=True))
        return (
            requests_family(self._codes),
            Family(
                "moh_request_seconds",
                "From the headers of an inference request to its answer.",
                "histogram",
                (Series({}, self._seconds, buckets),),
            ),
        )

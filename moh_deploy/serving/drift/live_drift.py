"""Show how far live routing is from the reference, among the metrics of the process that serves.

A window is what was counted since the one before, as soon as it has the requests that the
smallest limits are for. It is judged when metrics are asked for: no thread waits for that.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.serving.drift.judge import LiveCounts, WindowVerdict, judge_window
from moh_deploy.serving.drift.reference import RoutingReference, read_reference
from moh_deploy.serving.metrics import Family, Series
from moh_deploy.serving.telemetry import Telemetry
from moh_deploy.system.digest import sha256_of


class LiveDrift:
    """Judges the traffic of a served model window by window. Several threads may ask.

    Args:
        reference: The routing of traffic that is known to be good.
        digest: Of the file that it was read from.
        telemetry: What counts.
    """

    def __init__(self, reference: RoutingReference, digest: str, telemetry: Telemetry) -> None:
        self._reference, self._digest, self._telemetry = reference, digest, telemetry
        self._lock = threading.Lock()
        self._since, self._before = time.time(), telemetry.totals()
        self._last: WindowVerdict | None = None
        self._outcomes = Counter(usual=0, alarm=0)

    def families(self) -> tuple[Family, ...]:
        """Return what came of the windows so far, as metrics."""
        with self._lock:
            self._judge()
            layers = () if self._last is None else self._last.layers
            outcomes = [Series({"outcome": name}, n) for name, n in self._outcomes.items()]
        ratios = [
            Series({"layer": layer.path, "statistic": drift.statistic}, drift.ratio)
            for layer in layers
            for drift in layer.drifts
        ]
        return (
            Family(
                "moh_reference_info",
                "The reference of routing: digest of its file.",
                "gauge",
                (Series({"digest": self._digest}, 1),),
            ),
            Family(
                "moh_drift_ratio",
                "Distance of the last window from the reference by what chance explains: above 1"
                " it is drift.",
                "gauge",
                tuple(ratios),
            ),
            Family(
                "moh_drift_windows_total",
                "Windows of requests whose routing was judged by the reference.",
                "counter",
                tuple(outcomes),
            ),
        )

    def _judge(self) -> None:
        now, totals = time.time(), self._telemetry.totals()
        requests = totals.requests - self._before.requests
        if requests < self._reference.limits[0].requests:
            return
        # Heads are counted one by one in here, whatever is shown of them.
        grown = LiveCounts(totals.counts - self._before.counts, requests, self._since, now)
        self._last = judge_window(self._reference, grown)
        self._outcomes["alarm" if self._last.alarms else "usual"] += 1
        self._since, self._before = now, totals


def open_live_drift(path: Path, telemetry: Telemetry) -> LiveDrift:
    """Read a reference, to judge by it what is served.

    Raises:
        ConfigError: It is no reference, or of another package.
    """
    reference = read_reference(path)
    reference.require_of(telemetry.digest, f"{path}: the served model")
    if reference.layout != telemetry.reader.layout:
        raise ConfigError(f"reference {path} counts other layers than the package has.")
    return LiveDrift(reference, sha256_of(path), telemetry)

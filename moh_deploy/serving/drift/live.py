"""Live traffic in windows: cut from a dump, or the difference of two looks at metrics."""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.serving.drift.judge import LiveCounts, WindowVerdict, judge_window
from moh_deploy.serving.drift.reference import RoutingReference, read_reference
from moh_deploy.serving.metrics import Family, Series, parse_text, single
from moh_deploy.serving.telemetry import Telemetry
from moh_deploy.serving.telemetry.routing import MARGIN_EDGES, LayerColumns, read_window
from moh_deploy.system.bounded_file import sha256_of

_MOST_BYTES = 64 * 2**20
_PATIENCE_SECONDS = 10.0

_Scraped = dict[str, list[tuple[dict[str, str], float]]]


def windows_of_dump(path: Path, reference: RoutingReference) -> tuple[LiveCounts, ...]:
    """Cut a dump into windows of the size that the reference was calibrated for first.

    What is left at the end goes to the last window.

    Raises:
        ConfigError: It is no dump, or of another model.
    """
    dump = read_window(path)
    reference.require_of(dump.about.digest, f"{path}")
    if dump.layout != reference.layout:
        raise ConfigError(f"{path} counts other layers than the reference.")
    if not len(dump.rows):
        return ()
    # Rows are cut where so many requests are full: a row may be of several.
    full = np.cumsum(dump.requests) // reference.limits[0].requests
    numbers = np.minimum(np.concatenate([[0], full[:-1]]), max(int(full[-1]) - 1, 0))
    return tuple(
        LiveCounts(
            dump.rows[numbers == number].sum(axis=0),
            int(dump.requests[numbers == number].sum()),
            float(dump.seconds[numbers == number].min()),
            float(dump.seconds[numbers == number].max()),
        )
        for number in np.unique(numbers)
    )


def windows_of_metrics(
    url: str,
    reference: RoutingReference,
    *,
    every: float,
    windows: int,
    wait: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> Iterator[LiveCounts]:
    """Look at a server's metrics again and again; what was counted in between is a window.

    Windows that are too small to be judged are put together, until there are enough requests. A
    server that does not answer gives a window without data.

    Args:
        every: Seconds between two looks.
        windows: How often to look after the first time.

    Raises:
        ConfigError: It is not the address of metrics, or they are of another model.
        BackendError: prometheus_client is not installed.
    """
    fewest, before = reference.limits[0].requests, _looked(url, reference, now())
    for number in range(windows):
        wait(every)
        found = _looked(url, reference, now())
        no_data, until = found.no_data or before.no_data, found.until
        # A server that began anew counts less: all of it is new.
        grown = replace(found, since=before.since)
        if no_data is not None:
            grown = LiveCounts(np.zeros(0), 0, before.since, until, no_data=no_data)
        elif found.requests >= before.requests and (found.totals >= before.totals).all():
            totals, requests = found.totals - before.totals, found.requests - before.requests
            grown = replace(grown, totals=totals, requests=requests)
        # None at all is an alarm at once; a few are the beginning of a window.
        if 0 < grown.requests < fewest and number < windows - 1:
            continue
        yield grown
        before = found


def _looked(url: str, reference: RoutingReference, now: float) -> LiveCounts:
    """Return what a server has counted since its start, or why it does not answer."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"'{url}' is no address of metrics, expected http:// or https://.")
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_SECONDS) as answer:
            content: bytes = answer.read(_MOST_BYTES + 1)
    except ValueError as error:
        raise ConfigError(f"'{url}' is no address: {error}.") from error
    except (OSError, http.client.HTTPException) as error:
        elsewhere = ""
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            elsewhere = " (a server's metrics are at /metrics)" if error.code == 404 else ""
        why = f"{url} does not answer: {error}{elsewhere}"
        return LiveCounts(np.zeros(0), 0, now, now, no_data=why)
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{url} answers with more than {_MOST_BYTES} bytes.")
    return _live_counts(parse_text(content.decode("utf-8", "replace"), url), url, reference, now)


def _live_counts(
    scraped: _Scraped, url: str, reference: RoutingReference, now: float
) -> LiveCounts:
    infos = [labels for labels, _ in scraped.get("moh_package_info", [])]
    if not infos:
        raise ConfigError(
            f"{url} has no metric moh_package_info: nothing there counts what routers do.",
            hint="`moh-deploy serve` and bundles of `moh-deploy bundle` have it.",
        )
    digests = [labels.get("digest", "") for labels in infos]
    if reference.digest not in digests:
        reference.require_of(digests[0], url)
    served = [_service(labels) for labels in infos if labels.get("digest") == reference.digest]
    ours = {
        name: [(labels, value) for labels, value in series if _service(labels) in served]
        for name, series in scraped.items()
    }
    # Heads are counted one by one, or not at all.
    per_head = any("head" in labels for labels, _ in ours.get("moh_head_activations_total", []))
    layers = {columns.layer.path: columns for columns in reference.layout.columns}
    totals = np.zeros(reference.layout.width)
    for name, series in ours.items():
        for labels, value in series:
            columns = layers.get(labels.get("layer", ""))
            column = None if columns is None else _column(columns, name, labels, per_head=per_head)
            if column is not None:
                totals[column] += value
    for columns in layers.values():  # buckets count all up to their edge
        totals[columns.margins] = np.diff(totals[columns.margins], prepend=0)
    requests = sum(value for _, value in ours.get("moh_sampled_requests_total", []))
    return LiveCounts(totals, round(requests), now, now, per_head)


def _service(labels: Mapping[str, str]) -> tuple[str | None, str | None]:
    return labels.get("model"), labels.get("version")


def _column(
    columns: LayerColumns, name: str, labels: Mapping[str, str], *, per_head: bool
) -> int | None:
    """Return the column that a series of a layer counts in; None where it counts in none.

    Without heads one by one, a sum stands at the first head that it may be of: sums over heads are
    right then, and nothing else is looked at.
    """
    match name:
        case "moh_sampled_tokens_total":
            return columns.tokens
        case "moh_nonfinite_gates_total":
            return columns.nonfinite
        case "moh_head_activations_total" | "moh_gate_mass_total":
            part = columns.on if name == "moh_head_activations_total" else columns.mass
            first = columns.layer.num_shared_heads or 0 if labels.get("kind") == "routed" else 0
            head = int(labels["head"]) if per_head and labels.get("head", "").isdecimal() else first
            return int(part.start) + head if head < columns.layer.num_heads else None
        case "moh_router_margin_bucket":
            with suppress(KeyError, ValueError):  # an edge of another histogram, or none
                return int(columns.margins.start) + MARGIN_EDGES.index(float(labels["le"]))
    return None


# Show how far live routing is from the reference, among the metrics of the process that serves.
#
# A window is what was counted since the one before, as soon as it has the requests that the
# smallest limits are for. It is judged when metrics are asked for: no thread waits for that.

# An alert wants two alarms among so many windows: a single one may be chance.
_RECENT = 3


class LiveDrift:
    """Judges the traffic of a served model window by window. Several threads may ask."""

    def __init__(self, reference: RoutingReference, digest: str, telemetry: Telemetry) -> None:
        self._reference, self._digest, self._telemetry = reference, digest, telemetry
        self._lock = threading.Lock()
        self._since, self._before = time.time(), telemetry.totals()
        self._last: WindowVerdict | None = None
        self._outcomes = Counter(usual=0, alarm=0)
        self._recent: deque[str] = deque(maxlen=_RECENT)

    def families(self) -> tuple[Family, ...]:
        """Return what came of the windows so far, as metrics."""
        with self._lock:
            self._judge()
            layers = () if self._last is None else self._last.layers
            outcomes = [Series({"outcome": name}, n) for name, n in self._outcomes.items()]
            alarms = self._recent.count("alarm")
        ratios = [
            Series({"layer": layer.path, "statistic": drift.statistic}, drift.ratio)
            for layer in layers
            for drift in layer.drifts
        ]
        info = (Series({"digest": self._digest}, 1),)
        far = (
            "Distance of the last window from the reference by what chance explains: above 1 it is"
            " drift."
        )
        judged = "Windows of requests whose routing was judged by the reference."
        recent = f"Alarms among the last {_RECENT} windows that were judged."
        reference = "The reference of routing: digest of its file."
        return (
            Family("moh_reference_info", reference, "gauge", info),
            Family("moh_drift_ratio", far, "gauge", tuple(ratios)),
            Family("moh_drift_windows_total", judged, "counter", tuple(outcomes)),
            single("moh_drift_recent_alarms", "gauge", alarms, recent),
        )

    def _judge(self) -> None:
        now, totals = time.time(), self._telemetry.totals()
        requests = totals.requests - self._before.requests
        if requests < self._reference.limits[0].requests:
            return
        # Heads are counted one by one in here, whatever is shown of them.
        grown = LiveCounts(totals.counts - self._before.counts, requests, self._since, now)
        self._last = judge_window(self._reference, grown)
        outcome = "alarm" if self._last.alarms else "usual"
        self._outcomes[outcome] += 1
        self._recent.append(outcome)
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

"""Live traffic in windows: cut from a dump, or the difference of two looks at metrics."""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.serving.drift.judge import LiveCounts
from moh_deploy.serving.drift.reference import RoutingReference
from moh_deploy.serving.telemetry.layout import MARGIN_EDGES, LayerColumns
from moh_deploy.serving.telemetry.prometheus import parse_text
from moh_deploy.serving.telemetry.routing import Counts
from moh_deploy.serving.telemetry.window import read_window

_MOST_BYTES = 64 * 2**20
_PATIENCE_SECONDS = 10.0

_Scraped = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True)
class NoData:
    """A window without counts.

    Attributes:
        since: When it begins, in seconds since 1970.
        until: When it ends.
        why: In words.
    """

    since: float
    until: float
    why: str


def windows_of_dump(path: Path, reference: RoutingReference) -> tuple[LiveCounts, ...]:
    """Cut a dump into windows of the size that the reference was calibrated for first.

    What is left at the end goes to the last window.

    Raises:
        ConfigError: It is no dump, or of another model.
    """
    dump = read_window(path)
    _check_digest(dump.about.digest, reference, f"{path}")
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
) -> Iterator[LiveCounts | NoData]:
    """Look at a server's metrics again and again; what was counted in between is a window.

    Windows that are too small to be judged are put together, until there are enough requests. A
    server that does not answer gives a window without data.

    Args:
        url: Of the metrics.
        every: Seconds between two looks.
        windows: How often to look after the first time.

    Raises:
        ConfigError: It is not the address of metrics, or they are of another model.
        BackendError: prometheus_client is not installed.
    """
    fewest = reference.limits[0].requests
    since, before = now(), _looked(url, reference)
    for number in range(windows):
        wait(every)
        until, found = now(), _looked(url, reference)
        if isinstance(found, str) or isinstance(before, str):
            yield NoData(since, until, found if isinstance(found, str) else str(before))
            since, before = until, found
            continue
        grown = found.since(before)
        is_last = number == windows - 1
        # None at all is an alarm at once; a few are the beginning of a window.
        if grown.requests and grown.requests < fewest and not is_last:
            continue
        yield LiveCounts(grown.totals, grown.requests, since, until, grown.per_head)
        since, before = until, found


@dataclass(frozen=True)
class _Look:
    """The counters of a server at one moment."""

    totals: Counts
    requests: int
    per_head: bool

    def since(self, before: _Look) -> _Look:
        """Return what was counted since then; all, where a server that began anew counts less."""
        began_anew = self.requests < before.requests or (self.totals < before.totals).any()
        if began_anew:
            return self
        totals, requests = self.totals - before.totals, self.requests - before.requests
        return _Look(totals, requests, self.per_head)


def _looked(url: str, reference: RoutingReference) -> _Look | str:
    """Return what a server has counted; why not, where it does not answer."""
    try:
        text = _fetched(url)
    except urllib.error.HTTPError as error:
        error.close()
        elsewhere = " (a server's metrics are at /metrics)" if error.code == 404 else ""
        return f"{url} does not answer: {error}{elsewhere}"
    except (OSError, http.client.HTTPException) as error:
        return f"{url} does not answer: {error}"
    return _read(parse_text(text, url), url, reference)


def _fetched(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"'{url}' is no address of metrics, expected http:// or https://.")
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_SECONDS) as answer:
            content: bytes = answer.read(_MOST_BYTES + 1)
    except ValueError as error:
        raise ConfigError(f"'{url}' is no address: {error}.") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{url} answers with more than {_MOST_BYTES} bytes.")
    return content.decode("utf-8", "replace")


def _read(scraped: _Scraped, url: str, reference: RoutingReference) -> _Look:
    infos = scraped.get("moh_package_info", [])
    if not infos:
        raise ConfigError(
            f"{url} has no metric moh_package_info: nothing there counts what routers do.",
            hint="`moh-deploy serve` and bundles of `moh-deploy bundle` have it.",
        )
    digests = [labels.get("digest", "") for labels, _ in infos]
    if reference.digest not in digests:
        _check_digest(digests[0], reference, url)
    arms = [_arm(labels) for labels, _ in infos if labels.get("digest") == reference.digest]
    ours = {
        name: [(labels, value) for labels, value in series if _arm(labels) in arms]
        for name, series in scraped.items()
    }
    layout = reference.layout
    # Heads are counted one by one, or not at all.
    per_head = any("head" in labels for labels, _ in ours.get("moh_head_activations_total", []))
    totals = np.zeros(layout.width)
    for columns in layout.columns:
        _fill(totals, columns, ours, per_head=per_head)
    requests = sum(value for _, value in ours.get("moh_sampled_requests_total", []))
    return _Look(totals, round(requests), per_head)


def _arm(labels: Mapping[str, str]) -> tuple[str | None, str | None]:
    return labels.get("model"), labels.get("version")


def _fill(totals: Counts, columns: LayerColumns, scraped: _Scraped, *, per_head: bool) -> None:
    """Put the counts of one layer into a row. Without heads one by one, a sum stands at the first
    head that it may be of: sums over heads are right then, and nothing else is looked at."""
    layer = columns.layer

    def of_layer(name: str) -> Sequence[tuple[dict[str, str], float]]:
        series = scraped.get(name, [])
        return [one for one in series if one[0].get("layer") == layer.path]

    totals[columns.tokens] += sum(value for _, value in of_layer("moh_sampled_tokens_total"))
    totals[columns.nonfinite] += sum(value for _, value in of_layer("moh_nonfinite_gates_total"))
    parts = (
        (columns.on, "moh_head_activations_total"),
        (columns.mass, "moh_gate_mass_total"),
    )
    for place, name in parts:
        for labels, value in of_layer(name):
            first = layer.num_shared_heads or 0 if labels.get("kind") == "routed" else 0
            head = int(labels["head"]) if per_head and labels.get("head", "").isdecimal() else first
            if head < layer.num_heads:
                totals[place.start + head] += value
    edges = {edge: index for index, edge in enumerate(MARGIN_EDGES)}
    below = np.zeros(len(MARGIN_EDGES))
    for labels, value in of_layer("moh_router_margin_bucket"):
        index = edges.get(_number(labels.get("le", "")))
        if index is not None:
            below[index] += value
    totals[columns.margins] += np.diff(below, prepend=0)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _check_digest(digest: str, reference: RoutingReference, where: str) -> None:
    if digest != reference.digest:
        raise ConfigError(
            f"{where} is of another package than the reference: digest {digest[:12]}, the"
            f" reference's is {reference.digest[:12]}.",
            hint="`moh-deploy profile` makes a reference of the package that is served.",
        )

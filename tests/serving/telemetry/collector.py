"""A collector of OpenTelemetry on loopback, which keeps what it is sent."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import Any, TypeAlias

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from moh_deploy.serving.metrics import edge_text

LONG_S = 60.0
Scraped: TypeAlias = dict[str, dict[frozenset[tuple[str, str]], float]]
"""Name to labels to value, as a scrape of `/metrics` gives them."""
_WORDS = {"s": "seconds", "By": "bytes", "1": "ratio"}


class Collector:
    """What was sent so far.

    Attributes:
        url: Where it listens.
        status: What it answers with.
        exports: Decoded bodies, in order.
        refused: How many others came.
    """

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.exports: list[ExportMetricsServiceRequest] = []
        self.refused = 0
        self._came = threading.Condition()

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/metrics", path
        with self._came:
            if self.status == 200:
                self.exports.append(ExportMetricsServiceRequest.FromString(body))
            else:
                self.refused += 1
            self._came.notify_all()

    def wait_for(self, count: int, *, refused: bool = False) -> None:
        """Wait until so many exports came from now on."""
        with self._came:
            end = self._number(refused) + count
            assert self._came.wait_for(lambda: self._number(refused) >= end, LONG_S)

    def _number(self, refused: bool) -> int:
        return self.refused if refused else len(self.exports)

    def resources(self) -> dict[str, dict[str, str]]:
        """Return the attributes of each process that sent something, by its instance id."""
        found = [attributes(resource.resource) for _, resource in self._resources()]
        return {item["service.instance.id"]: item for item in found}

    def scraped(self) -> Scraped:
        """Return what Prometheus would hold: the last values of each process, added up."""
        latest: dict[str, Scraped] = {}
        for _, resource in self._resources():
            (scope,) = resource.scope_metrics
            found: Scraped = {}
            for metric in scope.metrics:
                for name, labels, value in series_of(metric):
                    found.setdefault(name, {})[frozenset(labels.items())] = value
            latest[attributes(resource.resource)["service.instance.id"]] = found
        added: Scraped = {}
        for found in latest.values():
            for name, series in found.items():
                for key, value in series.items():
                    at = added.setdefault(name, {})
                    at[key] = at.get(key, 0.0) + value
        return added

    def _resources(self) -> Iterator[tuple[ExportMetricsServiceRequest, Any]]:
        for export in list(self.exports):
            (resource,) = export.resource_metrics
            yield export, resource


def attributes(holder: Any) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in holder.attributes}


def series_of(metric: Any) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the series that Prometheus makes of a metric.

    Source: OpenTelemetry's specification, Prometheus and OpenMetrics Compatibility.
    """
    name = metric.name.replace(".", "_")
    # A unit stands at the end of the name, where it does not yet.
    assert not metric.unit or name.endswith(f"_{_WORDS[metric.unit]}"), (name, metric.unit)
    kind = metric.WhichOneof("data")
    for point in getattr(metric, kind).data_points:
        labels = attributes(point)
        if kind == "histogram":
            edges = [*point.explicit_bounds, math.inf]
            for edge, count in zip(edges, accumulate(point.bucket_counts), strict=True):
                yield f"{name}_bucket", {**labels, "le": edge_text(edge)}, count
            yield f"{name}_sum", labels, point.sum
            yield f"{name}_count", labels, point.count
            continue
        value = getattr(point, point.WhichOneof("value"))
        if kind == "sum":
            assert metric.sum.is_monotonic
            assert metric.sum.aggregation_temporality == 2  # cumulative
            name = f"{name.removesuffix('_total')}_total"
        yield name, labels, value


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = collector.status
            collector.take(self.path, body)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()

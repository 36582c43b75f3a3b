"""Send metrics to a collector of OpenTelemetry, by OTLP over HTTP.

The SDK's instruments count by themselves, and have no histogram that is read when it is exported.
What is counted here goes to its exporter as it is, so a collector gets the numbers of `/metrics`.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from moh_deploy.errors import ConfigError
from moh_deploy.serving.metrics import Family, Series

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric

# The environment variable of OpenTelemetry for the milliseconds between two exports.
INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"

# Without a name and password, which stand in OTEL_EXPORTER_OTLP_HEADERS: this goes to logs.
_ENDPOINT = re.compile(
    r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:[1-9]\d{0,4})?(/[\w./-]*)?", re.ASCII
)
_PATH = "/v1/metrics"
_TIMEOUT_S = 2.0  # Short: sums since the start lose nothing, and a server that ends waits for it.
_LOGGED_EVERY_S = 60.0
_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1", "": ""}


class OtlpExport:
    """Sends what was counted to a collector, again and again, until it is closed.

    Args:
        endpoint: Of the collector: `http://collector:4318`.
        model: What clients call the model: the service's name, and a label of all metrics.

    Raises:
        ConfigError: The exporter is not installed, or the endpoint is no address.
    """

    def __init__(self, endpoint: str, *, model: str, version: str) -> None:
        check_endpoint(endpoint)
        try:
            from opentelemetry.exporter.otlp.proto.http import metric_exporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        except ImportError as error:
            raise ConfigError(
                f"--otlp needs OpenTelemetry's exporter: {error}.",
                hint="pip install 'moh-deploy[otel]'",
            ) from error
        self._url = endpoint.rstrip("/").removesuffix(_PATH) + _PATH
        self._labels = {"model": model, "version": version}
        every_ms = os.environ.get(INTERVAL) or "60000"
        if not (every_ms.isascii() and every_ms.isdecimal() and int(every_ms[:12]) > 0):
            raise ConfigError(f"{INTERVAL} is '{every_ms[:40]}', expected milliseconds, from 1 on.")
        self._every_s = int(every_ms[:12]) / 1e3
        self._exporter = metric_exporter.OTLPMetricExporter(self._url, timeout=_TIMEOUT_S)
        self._logger = logging.getLogger(metric_exporter.__name__)
        service = {"service.name": model, "service.version": version}
        own = Resource.create({**service, "service.instance.id": str(uuid.uuid4())})
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        self._resource = own.merge(OTELResourceDetector().detect())
        self._since = time.time_ns()
        self._outcomes = Counter(sent=0, failed=0)
        self._logged = -math.inf
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, families: Callable[[], Sequence[Family]]) -> None:
        """Begin to send what a function returns, which is called by another thread."""
        self._thread = threading.Thread(target=self._keep_sending, args=(families,), daemon=True)
        self._thread.start()

    def families(self) -> tuple[Family, ...]:
        """Return how often that went well."""
        samples = [Series({"outcome": name}, count) for name, count in self._outcomes.items()]
        help = "Exports of metrics to the collector, by how they ended."
        return (Family("moh_otlp_exports_total", help, "counter", tuple(samples)),)

    def close(self) -> None:
        """Send a last time, and stop; a collector that is silent is not waited for long."""
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join(_TIMEOUT_S + 1)

    def _keep_sending(self, families: Callable[[], Sequence[Family]]) -> None:
        while not self._is_closing.wait(self._every_s):
            self._send(families)
        self._send(families)
        self._exporter.shutdown()

    def _send(self, families: Callable[[], Sequence[Family]]) -> None:
        from opentelemetry.sdk.metrics import export
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        now, problems = time.time_ns(), list[str]()

        def keep(record: logging.LogRecord) -> bool:
            problems.append(record.getMessage())
            return False  # The exporter has a line for each attempt.

        self._logger.addFilter(keep)
        try:
            metrics = [self._metric(family, now) for family in families() if family.samples]
            scope = export.ScopeMetrics(InstrumentationScope("moh_deploy"), metrics, "")
            resource = export.ResourceMetrics(self._resource, [scope], "")
            result = self._exporter.export(export.MetricsData([resource]))
            is_sent = result is export.MetricExportResult.SUCCESS
        except Exception as error:  # whatever it is: no request may feel it
            is_sent = False
            problems.append(f"{type(error).__name__}: {error}")
        self._logger.removeFilter(keep)
        self._outcomes["sent" if is_sent else "failed"] += 1
        if not is_sent and time.monotonic() - self._logged >= _LOGGED_EVERY_S:
            self._logged = time.monotonic()
            # The first names the reason, those behind it the retries.
            line = f"error: metrics were not sent to {self._url}: {''.join(problems[:1])}"
            print(line, file=sys.stderr, flush=True)

    def _metric(self, family: Family, now: int) -> Metric:
        from opentelemetry.sdk.metrics import export

        # Dots in names, and no suffix: an exporter to Prometheus puts both back.
        name = family.name.removesuffix("_total").replace("moh_", "moh.", 1)
        about = name, family.help, _UNITS[family.unit]
        labelled = [({**self._labels, **series.labels}, series) for series in family.samples]
        since, cumulative = self._since, export.AggregationTemporality.CUMULATIVE
        if family.kind == "histogram":
            histograms = [
                export.HistogramDataPoint(
                    labels,
                    since,
                    now,
                    count=series.buckets[math.inf],
                    sum=series.value,
                    # Each bucket alone, not all up to its edge.
                    bucket_counts=[
                        upto - below for below, upto in pairwise([0, *series.buckets.values()])
                    ],
                    explicit_bounds=[edge for edge in series.buckets if edge != math.inf],
                    min=None,  # type: ignore[arg-type]  # sums know no extremes
                    max=None,  # type: ignore[arg-type]
                )
                for labels, series in labelled
            ]
            return export.Metric(*about, export.Histogram(histograms, cumulative))
        numbers = [
            export.NumberDataPoint(labels, since, now, series.value) for labels, series in labelled
        ]
        if family.kind == "gauge":
            return export.Metric(*about, export.Gauge(numbers))
        return export.Metric(*about, export.Sum(numbers, cumulative, is_monotonic=True))


def check_endpoint(endpoint: str) -> None:
    """Refuse an endpoint that is no address of a collector.

    Raises:
        ConfigError: It is not.
    """
    if not _ENDPOINT.fullmatch(endpoint):
        raise ConfigError(
            f"--otlp is '{endpoint[:200]}', expected the address of a collector.",
            hint="OTLP over HTTP, mostly port 4318: --otlp http://collector:4318",
        )

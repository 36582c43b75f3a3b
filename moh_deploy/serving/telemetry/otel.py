"""Push metrics to a collector of OpenTelemetry, by whichever of its exporters.

The SDK's instruments count by themselves, and have no histogram that is read when it is exported.
What is counted here goes to the exporter as it is, so both exporters show the same numbers.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from moh_deploy.errors import BackendError
from moh_deploy.serving.metrics import Family, Series

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric, MetricExporter, MetricsData

_SCOPE = "moh_deploy"  # the instrumentation scope of all metrics
_LOGGER = logging.getLogger(__name__)


class OtelExport:
    """Hands what was counted to an exporter, again and again, until it is closed.

    Args:
        families: Returns what was counted: `ServedModel.families`.
        exporter: Of the SDK or of another package, such as
            `opentelemetry.exporter.otlp.proto.http.metric_exporter.OTLPMetricExporter()`.
        resource: Attributes of this process: `{"service.name": "digits"}`.
        every_seconds: How often.

    Raises:
        BackendError: The SDK is not installed.
    """

    def __init__(
        self,
        families: Callable[[], Sequence[Family]],
        exporter: MetricExporter,
        *,
        resource: Mapping[str, str] | None = None,
        every_seconds: float = 60.0,
    ) -> None:
        _require()
        self._families, self._exporter = families, exporter
        self._resource = dict(resource or {})
        self._since = time.time_ns()
        self._every = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="moh-otel", daemon=True)
        self._thread.start()

    def push(self) -> None:
        """Export once, now."""
        self._exporter.export(metrics_data(self._families(), self._resource, since=self._since))

    def close(self) -> None:
        """Export a last time, and stop; may be called twice."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        try:
            self.push()
        finally:
            self._exporter.shutdown()

    def _repeat(self) -> None:
        while not self._ended.wait(self._every):
            self._push_or_log()

    def _push_or_log(self) -> None:
        try:
            self.push()
        except Exception:  # whatever it is: a collector that is down comes back
            _LOGGER.exception("metrics were not exported")


def metrics_data(
    families: Sequence[Family], resource: Mapping[str, str], *, since: int
) -> MetricsData:
    """Return families as exporters take them, sums since the start.

    Args:
        resource: Attributes of the process.
        since: When counting began, in nanoseconds since 1970.
    """
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    now = time.time_ns()
    metrics = [_metric(one, since, now) for one in families]
    scope = ScopeMetrics(InstrumentationScope(_SCOPE), metrics, "")
    return MetricsData([ResourceMetrics(Resource.create(dict(resource)), [scope], "")])


def _metric(family: Family, since: int, now: int) -> Metric:
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        Histogram,
        HistogramDataPoint,
        Metric,
        NumberDataPoint,
        Sum,
    )

    # Dots in names, and no suffix: an exporter to Prometheus puts both back.
    name = family.name.removesuffix("_total").replace("moh_", "moh.", 1)
    cumulative = AggregationTemporality.CUMULATIVE
    if family.kind == "histogram":
        points = [
            HistogramDataPoint(
                dict(one.labels),
                since,
                now,
                count=one.buckets[math.inf],
                sum=one.value,
                bucket_counts=_each(one),
                explicit_bounds=[edge for edge in one.buckets if edge != math.inf],
                # Cumulative sums know no extremes.
                min=math.nan,
                max=math.nan,
            )
            for one in family.samples
        ]
        return Metric(name, family.help, "1", Histogram(points, cumulative))
    numbers = [NumberDataPoint(dict(one.labels), since, now, one.value) for one in family.samples]
    if family.kind == "gauge":
        return Metric(name, family.help, "1", Gauge(numbers))
    return Metric(name, family.help, "1", Sum(numbers, cumulative, is_monotonic=True))


def _each(series: Series) -> list[int]:
    """Return how many observations are in each bucket alone."""
    return [here - before for before, here in pairwise([0, *series.buckets.values()])]


def _require() -> None:
    try:
        import opentelemetry.sdk.metrics  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "metrics of OpenTelemetry need the package opentelemetry-sdk.",
            hint="pip install 'moh-deploy[otel]'",
        ) from error

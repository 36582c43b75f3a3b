"""Metrics for exporters of OpenTelemetry."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)

from moh_deploy.errors import BackendError
from moh_deploy.serving.telemetry.otel import OtelExport, metrics_data
from tests.serving.telemetry.test_prometheus import FAMILIES


class Kept(MetricExporter):
    """An exporter that keeps what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[MetricsData] = []
        self.came = threading.Event()
        self.is_shut_down = False

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        self.batches.append(metrics_data)
        self.came.set()
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self.is_shut_down = True


def points(data: MetricsData, name: str) -> list[Any]:
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    return list(next(one for one in metrics if one.name == name).data.data_points)


def test_numbers_are_those_of_the_families():
    data = metrics_data(FAMILIES, {"service.name": "digits"}, since=5)
    assert data.resource_metrics[0].resource.attributes["service.name"] == "digits"
    (tokens,) = points(data, "moh.routed_tokens")
    assert (tokens.value, tokens.attributes, tokens.start_time_unix_nano) == (12, {"layer": "a"}, 5)
    (margins,) = points(data, "moh.router_margin")
    assert (margins.count, margins.sum) == (4, 1.5)
    assert margins.explicit_bounds == [0.1, 1.0]
    # Each bucket alone, not what is at most its edge.
    assert margins.bucket_counts == [2, 1, 1]


def test_the_sdk_can_write_what_it_is_handed(capsys: pytest.CaptureFixture[str]):
    exporter = ConsoleMetricExporter(out=sys.stdout)
    exporter.export(metrics_data(FAMILIES, {}, since=0))
    assert "moh.router_margin" in capsys.readouterr().out


def test_it_exports_again_and_again_and_a_last_time():
    kept = Kept()
    export = OtelExport(lambda: FAMILIES, kept, every_seconds=0.001)
    assert kept.came.wait(10)
    export.close()
    export.close()
    before = len(kept.batches)
    assert before >= 2
    assert kept.is_shut_down
    time.sleep(0.01)
    assert len(kept.batches) == before


def test_an_exporter_that_fails_is_asked_again_and_shut_down(caplog: pytest.LogCaptureFixture):
    class Failing(Kept):
        def export(self, metrics_data: MetricsData, *args: Any, **kwargs: Any) -> Any:
            super().export(metrics_data)
            if len(self.batches) > 1:
                self.came_again.set()
            raise ConnectionError("the collector is down")

        came_again = threading.Event()

    failing = Failing()
    export = OtelExport(lambda: FAMILIES, failing, every_seconds=0.001)
    assert failing.came_again.wait(10)
    with pytest.raises(ConnectionError):
        export.close()
    assert failing.is_shut_down
    assert "the collector is down" in caplog.text


def test_missing_sdk_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)
    with pytest.raises(BackendError, match="need the package opentelemetry-sdk"):
        OtelExport(lambda: (), Kept())

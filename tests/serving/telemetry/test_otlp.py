"""Metrics sent to a collector of OpenTelemetry on loopback."""

import sys
import threading
from collections.abc import Iterator

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.serving.metrics import exposition, parse_text
from moh_deploy.serving.telemetry import otlp
from moh_deploy.serving.telemetry.otlp import INTERVAL, OtlpExport, check_endpoint
from tests.nightly import nightly
from tests.serving.telemetry.collector import Collector, Scraped, attributes, collecting
from tests.serving.test_metrics import FAMILIES

OWN = {"model": "digits", "version": "2"}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv(INTERVAL, "5")
    with collecting() as found:
        yield found


def export_to(collector: Collector) -> OtlpExport:
    return OtlpExport(collector.url, model="digits", version="2")


def outcomes(export: OtlpExport) -> dict[str, float]:
    (family,) = export.families()
    return {series.labels["outcome"]: series.value for series in family.samples}


def test_collector_gets_what_prometheus_scrapes(collector: Collector):
    export = export_to(collector)
    export.start(lambda: FAMILIES)
    collector.wait_for(2)
    export.close()
    expected: Scraped = {}
    for name, series in parse_text(exposition(FAMILIES)[0], "text").items():
        expected[name] = {frozenset({**OWN, **item}.items()): value for item, value in series}
    assert collector.scraped() == expected
    sent = len(collector.exports)
    assert outcomes(export) == {"sent": sent, "failed": 0}


def test_units_and_the_process_are_named(collector: Collector):
    export = export_to(collector)
    export.start(lambda: FAMILIES)
    export.close()
    (resource,) = collector.exports[-1].resource_metrics
    found = attributes(resource.resource)
    assert (found["service.name"], found["service.version"]) == ("digits", "2")
    assert found["service.instance.id"]
    metrics = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert {name: metric.unit for name, metric in metrics.items()} == {
        "moh.routed_tokens": "",
        "moh.mode": "",
        "moh.router_margin": "",
        "moh.request_seconds": "s",
    }
    (margins,) = metrics["moh.router_margin"].histogram.data_points
    assert not margins.HasField("min")
    assert 0 < margins.start_time_unix_nano < margins.time_unix_nano


def test_environment_may_name_the_service(collector: Collector, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=canary")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "readers")
    export = export_to(collector)
    export.start(lambda: FAMILIES)
    export.close()
    (found,) = collector.resources().values()
    assert (found["service.name"], found["service.version"]) == ("readers", "2")
    assert found["deployment.environment.name"] == "canary"


# A connection that is refused is tried again behind a second.
@pytest.mark.parametrize("fault", ["refuses", "families", pytest.param("is down", marks=nightly)])
def test_failure_is_counted_and_logged_once_a_minute(collector: Collector, fault: str, capfd):
    asked = threading.Semaphore(0)

    def families() -> tuple[()]:
        asked.release()
        if fault == "families":
            raise KeyError("planted")
        return ()

    collector.status = 400
    export = export_to(collector)
    if fault == "is down":
        export = OtlpExport("http://127.0.0.1:9", model="digits", version="2")
    export.start(families)
    for _ in range(3):
        assert asked.acquire(timeout=60)
    export.close()
    found = outcomes(export)
    assert (found["sent"], found["failed"] >= 3) == (0, True)
    assert not export._thread.is_alive()
    reason = {"refuses": "code: 400", "is down": "refused", "families": "KeyError: 'planted'"}
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: metrics were not sent to http://127.0.0.1:")
    assert "/v1/metrics: " in line
    assert reason[fault] in line


def test_next_minute_has_a_line_of_its_own(collector: Collector, monkeypatch, capfd):
    collector.status = 400
    export = export_to(collector)
    for minute in (0.0, 1.0, 59.0, 61.0):
        monkeypatch.setattr(otlp.time, "monotonic", lambda minute=minute: minute)
        export._send(lambda: FAMILIES)
    assert len(capfd.readouterr().err.splitlines()) == 2
    assert outcomes(export) == {"sent": 0, "failed": 4}


def test_collector_that_comes_back_gets_the_sums(collector: Collector):
    collector.status = 400
    export = export_to(collector)
    export.start(lambda: FAMILIES)
    collector.wait_for(1, refused=True)
    collector.status = 200
    collector.wait_for(1)
    export.close()
    assert collector.scraped()["moh_routed_tokens_total"] == {
        frozenset({**OWN, "layer": "a"}.items()): 12
    }


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4318",
        "ftp://collector",
        "http://",
        "http://collector:port",
        "http://collector:0",
        "http://[::1",
        "http://user:password@collector:4318",
        "http://collector:4318/?a=b",
        "http://collector:4318/\n",
        "",
    ],
)
def test_what_is_no_address_is_refused(endpoint: str):
    with pytest.raises(ConfigError, match="expected the address of a collector") as caught:
        check_endpoint(endpoint)
    assert caught.value.hint is not None
    assert "--otlp http://collector:4318" in caught.value.hint


@pytest.mark.parametrize("path", ["", "/", "/v1/metrics", "/v1/metrics/"])
def test_path_of_metrics_need_not_be_given(collector: Collector, path: str):
    export = OtlpExport(collector.url + path, model="digits", version="2")
    export.start(lambda: FAMILIES)
    export.close()
    assert len(collector.exports) == 1  # the collector refuses any other path


@pytest.mark.parametrize("text", ["0", "1e3", "-5", "soon"])
def test_interval_of_another_form_is_refused(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(INTERVAL, text)
    with pytest.raises(ConfigError, match=f"{INTERVAL} is '{text}', expected milliseconds"):
        OtlpExport("http://collector:4318", model="digits", version="2")


def test_missing_exporter_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ConfigError, match="--otlp needs OpenTelemetry's exporter") as caught:
        OtlpExport("http://collector:4318", model="digits", version="2")
    assert caught.value.hint == "pip install 'moh-deploy[otel]'"

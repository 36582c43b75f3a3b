"""What a collector gets from whole servers, beside their own `/metrics`."""

import urllib.request
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from moh_deploy.serving.http.protocol import write_request
from moh_deploy.serving.metrics import parse_text
from moh_deploy.serving.telemetry.otlp import INTERVAL
from moh_deploy.serving.triton.server import running_server
from tests.handmade_package import WIDTH, write_package
from tests.nightly import nightly
from tests.serving.http.running import running
from tests.serving.telemetry.collector import Collector, Scraped, collecting
from tests.serving.triton.bundles import bundle_of_handmade
from tests.serving.triton.triton_environment import server_or_skip

pytestmark = nightly

REQUESTS = 30
CHANGING = {"moh_heartbeat_seconds", "moh_otlp_exports_total"}


def ask(url: str, model: str) -> None:
    body = write_request({"x": np.ones((1, 3, WIDTH), np.float32)})
    with httpx.Client(timeout=60) as client:
        for _ in range(REQUESTS):
            path = f"{url}/v2/models/{model}/infer"
            assert client.post(path, content=body.content, headers=body.headers).status_code == 200


def metrics_of(text: str, *, without: str = "") -> Scraped:
    """Read our metrics of a scrape, added up over the values of a label."""
    found: Scraped = {}
    for name, series in parse_text(text, "/metrics").items():
        for labels, value in series:
            key = frozenset((k, v) for k, v in labels.items() if k != without)
            if name.startswith("moh_"):
                at = found.setdefault(name, {})
                at[key] = at.get(key, 0.0) + value
    return found


def assert_alike(collector: Collector, scraped: Scraped, requests: str) -> None:
    theirs = collector.scraped()
    assert scraped.keys() == theirs.keys()
    for name in scraped.keys() - CHANGING:
        assert scraped[name].keys() == theirs[name].keys(), name
        for key, value in scraped[name].items():
            # A sum of floats differs in its last digits, as Triton adds up what has grown.
            assert theirs[name][key] == pytest.approx(value, rel=1e-9), (name, key)
    # Triton's warm-ups are requests, too.
    assert sum(theirs[requests].values()) >= REQUESTS
    assert sum(theirs["moh_otlp_exports_total"].values()) > 0


def test_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package, said = write_package(tmp_path / "package").root, tmp_path / "said"
    monkeypatch.setenv(INTERVAL, "100")
    with collecting() as collector:
        options = ("--otlp", collector.url, "--per-head", "--sample-every=2", "--guard=default")
        with running(package, said, *options) as server:
            ask(server.url, "m")
            collector.wait_for(2)  # the first may have begun before the last answer
            scraped = metrics_of(httpx.get(f"{server.url}/metrics").text)
            assert_alike(collector, scraped, "moh_requests_total")
            headers = {"accept": "application/openmetrics-text"}
            openmetrics = httpx.get(f"{server.url}/metrics", headers=headers).text
            assert len(list(text_string_to_metric_families(openmetrics))) > 10
            collector.status = 400
            collector.wait_for(1, refused=True)
            ask(server.url, "m")
            collector.status = 200
            sent = len(collector.exports)
            assert server.stop() == 0
        assert len(collector.exports) > sent, "nothing is sent at the end"
        answered = collector.scraped()["moh_requests_total"]
        assert sum(answered.values()) == 2 * REQUESTS
        (service,) = collector.resources().values()
        assert (service["service.name"], service["service.version"]) == ("m", "1")
        # Of all attempts that failed there is one line.
        (line,) = said.read_text().splitlines()
        assert line.startswith(f"error: metrics were not sent to {collector.url}/v1/metrics")


@pytest.mark.parametrize("instances", [1, 2])
def test_triton(instances: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server = server_or_skip()
    monkeypatch.setenv(INTERVAL, "200")
    with collecting() as collector:
        root = bundle_of_handmade(
            tmp_path, instances=instances, threads=1, sample_every=1, otlp=collector.url
        )
        with running_server(server, root, tmp_path / "server.log") as runs:
            ask(f"http://127.0.0.1:{runs.ports.http}", "handmade")
            collector.wait_for(4 * instances)  # the server's own metrics are half a second old
            url = f"http://127.0.0.1:{runs.ports.metrics}/metrics"
            with urllib.request.urlopen(url, timeout=30) as answer:
                text = answer.read().decode()
            # What each instance sends of itself stands there beside the others.
            scraped = metrics_of(text, without="instance")
            assert_alike(collector, scraped, "moh_sampled_requests_total")
            assert len(collector.resources()) == instances

"""The script that tells whether a server answers, and whether all of its instances live."""

import io
import json
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from moh_deploy.serving.triton import probe
from tests.serving.drift.traffic import metrics_at
from tests.serving.triton.bundles import bundle_of_handmade


def heartbeat(model: str, instance: str, said: float) -> str:
    labels = f'instance="{instance}",model="{model}",version="1"'
    return f"moh_heartbeat_seconds{{{labels}}} {said}\n"


@pytest.mark.parametrize(
    ("said", "is_good"), [(0.0, True), (25.0, True), (60.0, False), (1e6, False)]
)
def test_instance_that_says_nothing_for_long_is_missed(said: float, is_good: bool):
    now = time.time()
    lines = heartbeat("m", "m_0_0", now) + heartbeat("other", "m_0_0", 1.0)
    lines += heartbeat("m", "m_0_1", now - said if said else 0.0)
    with metrics_at(lambda: "# TYPE moh_heartbeat_seconds gauge\n" + lines) as url:
        found = probe.silent_instance(port_of(url), "m")
    assert (found is None) is is_good
    assert is_good or ("an instance of m is silent" in str(found) and "m_0_1" in str(found))


def port_of(url: str) -> str:
    return url.removesuffix("/metrics").rpartition(":")[2]


def test_backend_without_heartbeats_is_not_asked_for_them():
    with metrics_at(lambda: "nv_inference_count 3\n") as url:
        assert probe.silent_instance(port_of(url), "m") is None


def test_request_is_the_recorded_one_of_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = bundle_of_handmade(tmp_path)
    asked = []

    def ask(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        asked.append(request)
        return io.BytesIO()

    monkeypatch.setattr(probe, "_FOLDER", root)
    monkeypatch.setattr(probe, "_ask", ask)
    assert probe.main("8123") is None
    (request,) = asked
    assert request.full_url == "http://127.0.0.1:8123/v2/models/handmade/infer"
    length = int(request.get_header("Inference-header-content-length"))
    (tensor,) = json.loads(request.data[:length])["inputs"]
    warmup = (root / "repository/handmade/warmup/0-0").read_bytes()
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("x", "FP32", [1, 3, 8])
    assert tensor["parameters"] == {"binary_data_size": len(warmup)}
    assert request.data[length:] == warmup


def test_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with metrics_at(lambda: "nv_inference_count 3\n") as url:
            assert probe.silent_instance(port_of(url), "m") is None


def test_server_that_shows_no_metrics_is_missed():
    with metrics_at(lambda: "") as url:
        found = probe.silent_instance(port_of(url), "m")
    assert "the server shows no metrics: HTTP Error 503" in str(found)

"""The script that tells whether a server answers, and whether all of its instances live."""

from __future__ import annotations

import io
import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.package import TensorInfo
from moh_deploy.serving.triton.config_pbtxt import Warmup
from moh_deploy.serving.triton.probe import probe_text
from tests.serving.drift.servers import metrics_at


@pytest.fixture(scope="module")
def probe() -> dict[str, Any]:
    """What the script defines."""
    return run_probe()


def run_probe(batch: int = 1) -> dict[str, Any]:
    inputs = (TensorInfo("x", "float32", ("batch", 3)),)
    found: dict[str, Any] = {"__name__": "probe"}
    exec(probe_text("m", inputs, Warmup("w", 1, {"x": (3,)}, {"x": "0-0"}), batch=batch), found)
    return found


def heartbeat(model: str, instance: str, said: float) -> str:
    labels = f'instance="{instance}",model="{model}",version="1"'
    return f"moh_heartbeat_seconds{{{labels}}} {said}\n"


@pytest.mark.parametrize(
    ("said", "is_good"), [(0.0, True), (25.0, True), (60.0, False), (1e6, False)]
)
def test_instance_that_says_nothing_for_long_is_missed(
    probe: dict[str, Any], said: float, is_good: bool
):
    now = time.time()
    lines = heartbeat("m", "m_0_0", now) + heartbeat("other", "m_0_0", 1.0)
    lines += heartbeat("m", "m_0_1", now - said if said else 0.0)
    with metrics_at(lambda: "# TYPE moh_heartbeat_seconds gauge\n" + lines) as url:
        found = probe["silent"](url.removesuffix("/metrics").rpartition(":")[2])
    assert (found == 0) is is_good
    assert is_good or ("an instance of m says nothing" in found and 'instance="m_0_1"' in found)


def test_backend_without_heartbeats_is_not_asked_for_them(probe: dict[str, Any]):
    with metrics_at(lambda: "nv_inference_count 3\n") as url:
        assert probe["silent"](url.removesuffix("/metrics").rpartition(":")[2]) == 0


def test_request_has_the_samples_that_the_model_takes_at_least(tmp_path: Path):
    recorded = tmp_path / "repository" / "m" / "warmup" / "0-0"
    recorded.parent.mkdir(parents=True)
    recorded.write_bytes(bytes(12))
    probe, asked = run_probe(batch=2), []

    def ask(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        asked.append(request)
        return io.BytesIO()

    probe |= {"__file__": str(tmp_path / "probe.py"), "ask": ask}
    assert probe["main"]() == 0
    (request,) = asked
    length = int(request.get_header("Inference-header-content-length"))
    (tensor,) = json.loads(request.data[:length])["inputs"]
    assert (tensor["shape"], tensor["parameters"]) == ([2, 3], {"binary_data_size": 24})
    assert request.data[length:] == bytes(24)


def test_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with metrics_at(lambda: "nv_inference_count 3\n") as url:
            port = url.removesuffix("/metrics").rpartition(":")[2]
            assert run_probe()["silent"](port) == 0


def test_server_that_shows_no_metrics_is_missed(probe: dict[str, Any]):
    with metrics_at(lambda: "") as url:
        found = probe["silent"](url.removesuffix("/metrics").rpartition(":")[2])
    assert "the server shows no metrics: HTTP Error 503" in found

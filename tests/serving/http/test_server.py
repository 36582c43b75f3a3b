import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Runner
from moh_deploy.serving.guard.guard_io import Control, write_control
from moh_deploy.serving.http.protocol import HEADER_LENGTH, write_request
from moh_deploy.serving.telemetry import read_window
from moh_deploy.system.npz import Array
from tests.damaged_library import damaged_library
from tests.handmade_package import WIDTH
from tests.kernel_library import required_library
from tests.nightly import nightly, sampled
from tests.serving.http.running import LONG_S, Running, is_there, running
from tests.serving.triton.bundles import bundle_of_handmade, replace_whole

MIB = 2**20


def inputs(rows: int, *, seq: int = 3, seed: int = 0) -> dict[str, Array]:
    x = np.random.default_rng(seed).standard_normal((rows, seq, WIDTH)).astype(np.float32)
    return {"x": x}


@pytest.fixture(scope="module")
def server(package: OnnxPackage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    said = tmp_path_factory.mktemp("said") / "stderr.txt"
    options = ["--threads", "1", "--max-body", "1", "--read-timeout", "1s", "--longest", "seq=64"]
    with running(package.root, said, *options) as found:
        yield found
        # Whatever the tests have sent: it is the same process, and it has not complained.
        assert is_there(found.worker)
        assert said.read_text() == ""


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


def test_server_says_what_it_is(server: Running, client: httpx.Client):
    def get(path: str) -> object:
        return client.get(f"{server.url}{path}").json()

    assert get("/v2/health/live") == {"live": True}
    assert get("/v2/health/ready") == {"ready": True}
    assert get("/v2/models/m/ready") == {"name": "m", "ready": True}
    assert get("/v2/models/m/versions/1/ready") == {"name": "m", "ready": True}
    tensor = {"datatype": "FP32", "shape": [-1, -1, WIDTH]}
    assert get("/v2/models/m") == {
        "name": "m",
        "versions": ["1"],
        "platform": "moh-deploy",
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
    }


@pytest.mark.parametrize("is_binary", [True, False], ids=["raw", "JSON"])
def test_request_is_answered_as_the_package_answers(
    server: Running, client: httpx.Client, runner: Runner, is_binary: bool
):
    asked = inputs(2)
    body = write_request(asked, id="seven", is_binary=is_binary)
    url = f"{server.url}/v2/models/m/versions/1/infer"
    response = client.post(url, content=body.content, headers=body.headers)
    assert response.status_code == 200
    head = response.content[: int(response.headers.get(HEADER_LENGTH, len(response.content)))]
    answer = json.loads(head)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "1", "seven")
    raw = response.content[len(head) :]
    (output,) = answer["outputs"]
    got = np.frombuffer(raw, "<f4") if is_binary else np.array(output["data"], np.float32)
    assert got.reshape(output["shape"]).tobytes() == runner.run(asked)["y"].tobytes()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((65, 3), "dimension 'batch' is 65, expected at most 64."),
        ((1, 65), "dimension 'seq' is 65"),
    ],
)
def test_request_beyond_the_largest_sizes_gets_400_and_the_next_answer_is_right(
    server: Running,
    client: httpx.Client,
    runner: Runner,
    sizes: tuple[int, int],
    message: str,
):
    body = write_request(inputs(sizes[0], seq=sizes[1]))
    url = f"{server.url}/v2/models/m/infer"
    response = client.post(url, content=body.content, headers=body.headers)
    assert response.status_code == 400
    assert message in response.json()["error"]
    asked = inputs(64, seed=5)
    np.testing.assert_allclose(
        server.infer(client, asked)["y"], runner.run(asked)["y"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "message"),
    [
        ("GET", "/", b"", {}, 404, "GET /: Not Found."),
        ("POST", "/v2/models/m/infer", b"", {"content-encoding": "gzip"}, 415, "compressed"),
        ("POST", "/v2/models/m/infer", bytes(MIB + 1), {}, 413, "expected at most 1048576"),
    ],
)  # fmt: skip
def test_refusal_is_a_status_and_a_sentence(
    server: Running,
    client: httpx.Client,
    method: str,
    path: str,
    content: bytes,
    headers: dict[str, str],
    status: int,
    message: str,
):
    url = f"{server.url}{path}"
    response = client.request(method, url, content=content, headers=headers)
    assert response.status_code == status
    assert message in response.json()["error"]


def test_body_without_a_length_is_too_large_in_the_end(server: Running, client: httpx.Client):
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(MIB // 10)

    response = client.post(f"{server.url}/v2/models/m/infer", content=chunks())
    assert response.status_code == 413


POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n"


@sampled(5)
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (POST + b"{", b"408"),
        (POST[:30], b"408"),
        (b"\x16\x03\x01\x02\x00\x01", b"400"),
        (b"GET /" + b"a" * 100_000, b"400"),
        (b"", b""),
    ],
    ids=["body", "headers", "TLS", "long", "nothing"],
)
def test_slow_client_is_sent_away(server: Running, sent: bytes, status: bytes):
    with socket.create_connection(("127.0.0.1", server.port), LONG_S) as connection:
        connection.sendall(sent)
        received = b"".join(iter(lambda: connection.recv(4096), b""))  # until it is closed
    assert received[9:12] == status
    assert (b'{"error":' in received) == bool(status)


@nightly
def test_client_that_reads_nothing_is_cut_off(server: Running):
    asked = write_request(inputs(64, seq=64))
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(asked.content)}"
    head += "".join(f"\r\n{name}: {value}" for name, value in asked.headers.items())
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(LONG_S)
        connection.connect(("127.0.0.1", server.port))
        # More answers than the buffers of both systems hold: the server stops reading, too.
        sent = (head.encode() + b"\r\n\r\n" + asked.content) * 1000
        with pytest.raises(OSError, match=r"reset|Broken"):
            connection.sendall(sent)


def test_client_that_goes_away_does_no_harm(server: Running, client: httpx.Client, runner: Runner):
    for sent in (POST, POST + b"{", write_request(inputs(1)).content):
        with socket.create_connection(("127.0.0.1", server.port), LONG_S) as connection:
            connection.sendall(sent)
    asked = inputs(1, seed=6)
    assert server.infer(client, asked)["y"].tobytes() == runner.run(asked)["y"].tobytes()


def test_every_answer_to_many_clients_is_right(server: Running, runner: Runner):
    before = server.metric("moh_batch_samples_sum")

    def ask(number: int) -> int:
        rows = 0
        with server.client() as own:
            for step in range(25):
                asked = inputs(1 + (number + step) % 4, seq=1 + step % 3, seed=100 * number + step)
                got, expected = server.infer(own, asked)["y"], runner.run(asked)["y"]
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
                rows += len(got)
        return rows

    with ThreadPoolExecutor(8) as pool:
        rows = sum(pool.map(ask, range(8)))
    assert server.metric("moh_batch_samples_sum") - before == rows


@nightly
def test_worker_that_is_killed_is_started_again_and_answers_stay_right(
    package: OnnxPackage, runner: Runner, tmp_path: Path
):
    asked = inputs(3, seed=9)
    expected = runner.run(asked)["y"].tobytes()
    is_over, failed, answered = threading.Event(), [], []

    def ask_once(server: Running) -> None:
        try:
            with server.client() as own:
                answered.append(server.infer(own, asked)["y"].tobytes() == expected)
        except httpx.TransportError as error:
            failed.append(type(error).__name__)

    def ask(server: Running) -> None:
        while not is_over.is_set():
            ask_once(server)

    with running(package.root, tmp_path / "said", "--threads", "1") as server:
        with ThreadPoolExecutor(4) as pool:
            try:
                clients = [pool.submit(ask, server) for _ in range(4)]
                _until(lambda: len(answered) > 20)
                os.kill(server.worker, signal.SIGKILL)
                _until(lambda: "answers, " in server.said.read_text())
                count = len(answered)
                _until(lambda: len(answered) > count + 20)
            finally:
                is_over.set()
            for item in clients:
                item.result(LONG_S)
        assert all(answered)
        # What was being answered is lost; who connects meanwhile waits.
        assert len(failed) <= 4
        assert server.metric("moh_worker_restarts_total") == 1
        assert "ended with SIGKILL; the next starts" in server.said.read_text()
        assert server.stop() == 0


@nightly
def test_kernels_that_are_damaged_later_are_not_used_by_the_next_worker(
    runner: Runner, tmp_path: Path
):
    root, log, asked = bundle_of_handmade(tmp_path, guard=True), tmp_path / "log", inputs(3)
    expected = runner.run(asked)["y"]
    with running(root, tmp_path / "said", "--audit-log", str(log)) as server:
        replace_whole(root, f"lib/{required_library().name}", damaged_library())
        os.kill(server.worker, signal.SIGKILL)
        _until(lambda: "answers, " in server.said.read_text())
        with server.client() as client:
            got = server.infer(client, asked)["y"]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        assert '"to": "functions", "reason": "wrong known answer"' in log.read_text()
        assert "fallback level 'kernels' cannot serve: package" in server.said.read_text()


@pytest.mark.nightly
def test_run_that_hangs_ends_the_worker_and_the_rung_below_serves_in_the_next(
    package: OnnxPackage, runner: Runner, tmp_path: Path
):
    control, log, policy = (tmp_path / name for name in ("control.json", "log", "policy.yaml"))
    # A planted slow run lasts three times the limit: a minute.
    policy.write_text("rungs: [{kind: functions, name: first, p99_ms: 20000}, {kind: functions}]")
    options = ["--guard", policy, "--control", control, "--audit-log", log, "--drill"]
    limits = ["--threads", "1", "--request-timeout", "1s"]
    asked = write_request(inputs(1))
    with running(package.root, tmp_path / "said", *map(str, options), *limits) as server:
        with server.client() as client:

            def status(path: str, **body: Any) -> int:
                return client.request(
                    "POST" if body else "GET", f"{server.url}{path}", **body
                ).status_code

            body = {"content": asked.content, "headers": asked.headers}
            assert status("/v2/models/m/infer", **body) == 200
            write_control(control, Control(faults=("slow",)))
            _until(lambda: status("/v2/models/m/infer", **body) == 504)
            _until(lambda: "answers, " in server.said.read_text())
            write_control(control, Control())
            got = server.infer(client, inputs(1))["y"]
        np.testing.assert_allclose(got, runner.run(inputs(1))["y"], rtol=1e-5, atol=1e-6)
        said = server.said.read_text()
        assert "a run has not ended within 2 s: this worker ends" in said
        assert "ended with a run that hung; the next starts" in said
        assert '"to": "functions", "reason": "process died"' in log.read_text()
        assert server.metric("moh_worker_restarts_total") == 1
        assert server.stop() == 0


@nightly
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)],
    ids=lambda item: item.name,
)
def test_what_has_arrived_is_answered_at_the_end_as_the_batch_that_it_became(
    package: OnnxPackage, runner: Runner, tmp_path: Path, number: signal.Signals
):
    asked = [inputs(rows, seed=rows) for rows in (2, 3)]
    together = runner.run({"x": np.concatenate([item["x"] for item in asked])})["y"]
    options = ["--threads", "1", "--max-delay-ms", "60000"]
    with running(package.root, tmp_path / "said", *options) as server, server.client() as client:
        with ThreadPoolExecutor(2) as pool:
            waiting = []
            for item in asked:  # each waits for others to come
                waiting.append(pool.submit(server.infer, client, item))
                _until(lambda: server.metric("moh_queue_waiting_requests") == len(waiting))
            server.process.send_signal(number)
            got = [future.result(LONG_S)["y"] for future in waiting]
        assert got[0].tobytes() == together[:2].tobytes()
        assert got[1].tobytes() == together[2:].tobytes()
        assert server.process.wait(LONG_S) == 0
        assert not is_there(server.worker)
        with pytest.raises(httpx.ConnectError):
            client.get(f"{server.url}/v2")


def test_window_of_traffic_is_dumped(server: Running, client: httpx.Client, tmp_path: Path):
    url = f"{server.url}/v2/telemetry"
    assert client.get(f"{url}/dump").status_code == 409
    for wrong in ({"sample_every": "0"}, {"sample_evry": "1"}):
        assert client.post(f"{url}/start", params=wrong).status_code == 400
    assert client.post(f"{url}/start").json() == {"recording": True}
    for rows in (1, 2, 3):
        server.infer(client, inputs(rows, seq=2))
    assert client.post(f"{url}/stop").json() == {"recording": False}
    server.infer(client, inputs(1))
    (tmp_path / "dump.npz").write_bytes(client.get(f"{url}/dump").content)
    window = read_window(tmp_path / "dump.npz")
    assert window.requests.tolist() == [1, 1, 1]


def test_tokens_in_metrics_are_those_that_were_sent(server: Running, client: httpx.Client):
    before = server.metric("moh_routed_tokens_total")
    for rows in (1, 2, 3):
        server.infer(client, inputs(rows, seq=5))
    assert server.metric("moh_routed_tokens_total") - before == 6 * 5


@nightly
def test_worker_does_not_outlive_its_parent(package: OnnxPackage, tmp_path: Path):
    with running(package.root, tmp_path / "said", "--threads", "1") as server:
        assert is_there(server.worker)
        server.process.kill()
        _until(lambda: not is_there(server.worker))


def _until(condition: object) -> None:
    end = time.monotonic() + LONG_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)

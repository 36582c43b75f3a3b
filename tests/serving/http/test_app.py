from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from starlette.applications import Starlette

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving import Reply, ServedModel, ServingSettings, open_served
from moh_deploy.serving.http.app import OUT_OF_MEMORY, Endpoint, make_app
from moh_deploy.serving.http.limits import HttpLimits
from moh_deploy.serving.http.protocol import HEADER_LENGTH, read_answer, write_request
from moh_deploy.serving.http.queue import BatchingQueue, Tensors
from moh_deploy.serving.metrics import parse_text
from moh_deploy.serving.telemetry import RecordedWindow, Telemetry
from moh_deploy.serving.telemetry.otlp import INTERVAL
from tests.handmade_package import WIDTH, write_package
from tests.serving.telemetry.collector import collecting

S = TypeVar("S")
T = TypeVar("T")
LONG_S = 60.0
ASKED = write_request({"x": np.ones((1, 2, WIDTH), np.float32)})
INFER = "/v2/models/m/infer"
ALONE: Any = {"instances": 1, "max_batch": 1, "max_delay_s": 0.0}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    root = write_package(tmp_path_factory.mktemp("app") / "package").root
    opened = open_served(find_deployed(root), ServingSettings("m", threads=1))
    yield opened
    opened.close()


class Held:
    """A model that answers when `gate` is opened, with what `replies` makes of the inputs."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.runs = 0
        self.replies: Callable[[Tensors], dict[str, np.ndarray]] = lambda inputs: {"y": inputs["x"]}

    def __call__(self, inputs: Tensors, sizes: Sequence[int] = ()) -> Reply:
        assert self.gate.wait(LONG_S)
        self.runs += 1
        return Reply(self.replies(inputs), "kernels")


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def app(served: ServedModel, held: Held) -> Iterator[Callable[..., Starlette]]:
    queues = []

    def make(
        *, max_waiting: int = 100, limits: HttpLimits | None = None, hung_s: float = LONG_S
    ) -> Starlette:
        queues.append(BatchingQueue(held, None, max_waiting=max_waiting, hung_s=hung_s, **ALONE))
        return make_app(Endpoint("m", "1", served, queues[-1], limits or HttpLimits()))

    yield make
    held.gate.set()
    assert all(queue.close(timeout_s=LONG_S) for queue in queues)


def connected(app: Starlette) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=LONG_S)


async def infer(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post(INFER, content=ASKED.content, headers=ASKED.headers)


async def metric(client: httpx.AsyncClient, start: str) -> float:
    text = (await client.get("/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(start))


def test_full_queue_gets_503_and_when_to_come_again(app: Callable[..., Starlette], held: Held):
    async def run() -> None:
        async with connected(app(max_waiting=1)) as client:
            running = asyncio.create_task(infer(client))
            while await metric(client, "moh_batch_samples_count") < 1:
                await asyncio.sleep(0.001)
            waiting = asyncio.create_task(infer(client))
            while await metric(client, "moh_queue_waiting_requests") < 1:
                await asyncio.sleep(0.001)
            refused = await infer(client)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json() == {"error": "1 requests wait already, which is the limit."}
            held.gate.set()
            assert [(await one).status_code for one in (running, waiting)] == [200, 200]

    asyncio.run(run())


def test_late_answer_is_504_and_goes_to_nobody(app: Callable[..., Starlette], held: Held):
    async def run() -> None:
        limits = replace(HttpLimits(), request_timeout_s=0.05)
        async with connected(app(limits=limits)) as client:
            late = await asyncio.gather(infer(client), infer(client))
            assert [one.status_code for one in late] == [504, 504]
            assert late[0].json() == {"error": "there was no answer within 0.05 s."}
            held.gate.set()
            answer = await infer(client)
            assert answer.status_code == 200
            # The one that had begun, and the last: the other one was taken out of the queue.
            assert held.runs == 2
            assert await metric(client, 'moh_requests_total{code="504"') == 2

    asyncio.run(run())


def test_client_may_wait_for_less(app: Callable[..., Starlette]):
    async def run() -> None:
        async with connected(app()) as client:
            content = {"inputs": [], "parameters": {"timeout": 1000}}
            x = {"name": "x", "datatype": "FP32", "shape": [1, 1, WIDTH], "data": [0] * WIDTH}
            late = await client.post(INFER, json={**content, "inputs": [x]})
            assert late.json() == {"error": "there was no answer within 0.001 s."}

    asyncio.run(run())


def test_request_of_a_client_that_left_is_not_run(app: Callable[..., Starlette], held: Held):
    async def run() -> None:
        made = app()
        async with connected(made) as client:
            running = asyncio.create_task(infer(client))
            while await metric(client, "moh_batch_samples_count") < 1:
                await asyncio.sleep(0.001)
            await _leave(made)
            assert await metric(client, 'moh_requests_total{code="499"') == 1
            held.gate.set()
            assert (await running).status_code == 200
            assert (await infer(client)).status_code == 200
            assert held.runs == 2

    asyncio.run(run())


async def _leave(app: Starlette) -> None:
    """Send a request, and close the connection."""

    async def send(message: object) -> None:
        pass

    await _ask(app, send, leaves=True)


async def _ask(
    app: Starlette, send: Callable[[Any], Awaitable[None]], *, leaves: bool = False
) -> None:
    messages = [
        {"type": "http.request", "body": ASKED.content, "more_body": False},
        {"type": "http.disconnect"},
    ]
    headers = [(name.encode(), value.encode()) for name, value in ASKED.headers.items()]
    scope = {"type": "http", "method": "POST", "path": INFER, "headers": headers}
    client = ("127.0.0.1", 1)

    async def receive() -> Any:
        if len(messages) == 1 and not leaves:
            await asyncio.Event().wait()
        return messages.pop(0)

    await app({**scope, "query_string": b"", "root_path": "", "client": client}, receive, send)


def test_answer_is_held_until_it_is_sent(app: Callable[..., Starlette], held: Held):
    held.gate.set()

    async def run() -> None:
        is_sending, is_read = asyncio.Event(), asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                is_sending.set()
                await is_read.wait()

        made = app(limits=replace(HttpLimits(), max_held_bytes=2 * len(ASKED.content) + 10))
        unread = asyncio.create_task(_ask(made, send))
        async with connected(made) as client:
            await asyncio.wait_for(is_sending.wait(), LONG_S)
            assert (await infer(client)).status_code == 503
            is_read.set()
            await unread
            assert (await infer(client)).status_code == 200

    asyncio.run(run())


def test_failed_run_is_500_and_a_sentence(
    app: Callable[..., Starlette], held: Held, capsys: pytest.CaptureFixture[str]
):
    def fails(_: Tensors) -> dict[str, np.ndarray]:
        raise BackendError("ONNX Runtime failed.")

    async def run() -> httpx.Response:
        async with connected(app()) as client:
            return await infer(client)

    held.gate.set()
    held.replies = fails
    failed = asyncio.run(run())
    assert (failed.status_code, failed.json()) == (500, {"error": "ONNX Runtime failed."})
    assert capsys.readouterr().err == "error: ONNX Runtime failed.\n"


def test_failed_runs_fill_no_log_and_are_counted(
    app: Callable[..., Starlette], held: Held, capsys: pytest.CaptureFixture[str]
):
    def fails(_: Tensors) -> dict[str, np.ndarray]:
        raise BackendError("ONNX Runtime failed.")

    async def run() -> list[str]:
        async with connected(app()) as client:
            texts = [(await client.get("/metrics")).text]
            for _ in range(50):
                assert (await infer(client)).status_code == 500
            texts.append((await client.get("/metrics")).text)
        return re.findall(r'^moh_requests_total\{code="500".* (\S+)$', "".join(texts), re.MULTILINE)

    held.gate.set()
    held.replies = fails
    # An alert sees what grows: it would miss a first error that was not 0 before.
    assert asyncio.run(run()) == ["0.0", "50.0"]
    assert capsys.readouterr().err == 20 * "error: ONNX Runtime failed.\n"


def test_token_that_the_model_has_not_is_the_clients_fault(
    app: Callable[..., Starlette], held: Held, capsys: pytest.CaptureFixture[str]
):
    def fails(_: Tensors) -> dict[str, np.ndarray]:
        raise ConfigError("input 'ids' is 99 at [0, 1], expected 0 to 9.")

    async def run() -> httpx.Response:
        async with connected(app()) as client:
            return await infer(client)

    held.gate.set()
    held.replies = fails
    failed = asyncio.run(run())
    assert failed.status_code == 400
    assert failed.json() == {"error": "input 'ids' is 99 at [0, 1], expected 0 to 9."}
    assert capsys.readouterr().err == ""


def test_server_whose_instances_all_hang_is_not_ready(app: Callable[..., Starlette], held: Held):
    made = app(hung_s=0.05)

    async def run() -> None:
        async with made.router.lifespan_context(made), connected(made) as client:
            ready = [(await client.get("/v2/health/ready")).status_code]
            running = asyncio.create_task(infer(client))
            while await metric(client, "moh_hung_runs") < 1:
                await asyncio.sleep(0.001)
            ready += [
                (await client.get(f"/v2/{path}/ready")).status_code
                for path in ("health", "models/m")
            ]
            assert ready == [200, 503, 503]
            assert (await client.get("/v2/health/live")).status_code == 200
            held.gate.set()
            assert (await running).status_code == 200
            # The instance is free a moment behind its answer.
            async with asyncio.timeout(LONG_S):
                while (await client.get("/v2/health/ready")).json() != {"ready": True}:
                    await asyncio.sleep(0.001)

    asyncio.run(run())


def test_bug_is_500_and_its_traceback_is_not_for_clients(
    app: Callable[..., Starlette], held: Held, capsys: pytest.CaptureFixture[str]
):
    async def run() -> httpx.Response:
        async with connected(app()) as client:
            return await infer(client)

    held.gate.set()
    held.replies = lambda inputs: {"y": inputs["secret"]}
    failed = asyncio.run(run())
    assert failed.status_code == 500
    assert failed.json() == {"error": "this is a bug of moh-deploy: KeyError was not expected."}
    assert "KeyError: 'secret'" in capsys.readouterr().err


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("error", [BackendError("it failed."), KeyError("bug")])
def test_log_lines_of_a_failed_request_have_its_trace(
    app: Callable[..., Starlette],
    held: Held,
    error: Exception,
    capsys: pytest.CaptureFixture[str],
):
    def fails(_: Tensors) -> dict[str, np.ndarray]:
        raise error

    async def run(traceparent: str) -> str:
        async with connected(app()) as client:
            headers = {**ASKED.headers, "traceparent": traceparent}
            failed = await client.post(INFER, content=ASKED.content, headers=headers)
        assert failed.status_code == 500
        assert "traceparent" not in failed.headers
        return capsys.readouterr().err

    held.gate.set()
    held.replies = fails
    assert asyncio.run(run(f"00-{TRACE_ID}-00f067aa0ba902b7-00")).startswith(
        f"error: trace_id={TRACE_ID}: "
    )
    said = asyncio.run(run("00-not-a-trace\tanything"))
    assert "trace" not in said.partition("Traceback")[0]
    assert "anything" not in said


def test_request_seconds_name_the_last_sampled_trace_of_each_bucket(
    app: Callable[..., Starlette], held: Held
):
    async def run() -> str:
        async with connected(app()) as client:
            for trace, flags in (("1" * 32, "01"), (TRACE_ID, "01"), ("2" * 32, "00")):
                headers = {**ASKED.headers, "traceparent": f"00-{trace}-00f067aa0ba902b7-{flags}"}
                await client.post(INFER, content=ASKED.content, headers=headers)
            headers = {"accept": "application/openmetrics-text"}
            return (await client.get("/metrics", headers=headers)).text

    held.gate.set()
    found = {
        sample.exemplar.labels["trace_id"]: (float(sample.labels["le"]), sample.exemplar.value)
        for family in text_string_to_metric_families(asyncio.run(run()))
        for sample in family.samples
        if sample.exemplar
    }
    assert TRACE_ID in found
    assert "2" * 32 not in found
    edge, seconds = found[TRACE_ID]
    assert 0 < seconds <= edge


def test_collector_gets_what_metrics_show(
    served: ServedModel, held: Held, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(INTERVAL, "10")
    queue = BatchingQueue(held, None, max_waiting=1, **ALONE)
    held.gate.set()
    with collecting() as collector:
        settings = ServingSettings("m", threads=1, otlp=collector.url)
        opened = open_served(served.model, settings)
        made = make_app(Endpoint("m", "1", opened, queue, HttpLimits()))

        async def run() -> str:
            async with made.router.lifespan_context(made), connected(made) as client:
                assert (await infer(client)).status_code == 200
                return (await client.get("/metrics")).text

        text = asyncio.run(run())
        opened.close()
    queue.close(timeout_s=LONG_S)
    ours, theirs = parse_text(text, "/metrics"), collector.scraped()
    changing = "moh_otlp_exports_total"  # counts its own export a moment later
    assert ours.keys() == theirs.keys() > {changing, "moh_requests_total", "moh_package_info"}
    for name in ours.keys() - {changing}:
        assert {frozenset(labels.items()): value for labels, value in ours[name]} == theirs[name]


def test_bodies_together_are_limited(app: Callable[..., Starlette], held: Held):
    async def run() -> None:
        limits = replace(HttpLimits(), max_held_bytes=2 * len(ASKED.content) + 10)
        async with connected(app(limits=limits)) as client:
            running = asyncio.create_task(infer(client))
            while await metric(client, "moh_batch_samples_count") < 1:
                await asyncio.sleep(0.001)
            refused = await infer(client)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            held.gate.set()
            assert (await running).status_code == 200
            assert (await infer(client)).status_code == 200  # they are free again

    asyncio.run(run())


def test_large_tensors_go_through_threads(app: Callable[..., Starlette], held: Held):
    asked = {"x": np.random.default_rng(0).standard_normal((64, 64, WIDTH)).astype(np.float32)}
    body = write_request(asked)

    async def run() -> httpx.Response:
        async with connected(app()) as client:
            return await client.post(INFER, content=body.content, headers=body.headers)

    held.gate.set()
    answer = asyncio.run(run())
    got = read_answer(answer.content, answer.headers[HEADER_LENGTH])
    assert got["y"].tobytes() == asked["x"].tobytes()


def test_model_that_nothing_counts_has_no_telemetry(served: ServedModel):
    queue = BatchingQueue(served.answer, None, max_waiting=1, **ALONE)

    async def run(bare: ServedModel) -> None:
        made = make_app(Endpoint("m", "1", bare, queue, HttpLimits()))
        async with connected(made) as client:
            response = await client.post("/v2/telemetry/start")
            assert response.status_code == 404
            assert "an engine gives no gates" in response.json()["error"]

    with served.model.open() as runner:
        asyncio.run(run(ServedModel(served.model, runner)))
    assert queue.close(timeout_s=LONG_S)


def test_window_is_dumped_beside_the_event_loop(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
):
    queue = BatchingQueue(served.answer, None, max_waiting=1, **ALONE)
    made = make_app(Endpoint("m", "1", served, queue, HttpLimits()))
    threads = []

    def noted(work: Callable[[T], S]) -> Callable[[T], S]:
        def do(own: T) -> S:
            threads.append(threading.current_thread())
            return work(own)

        return do

    async def run() -> None:
        async with connected(made) as client:
            assert (await client.get("/v2/telemetry/dump")).status_code == 409
            assert (await client.post("/v2/telemetry/start")).json() == {"recording": True}
            assert (await client.get("/v2/telemetry/dump")).status_code == 200

    monkeypatch.setattr(Telemetry, "dump_window", noted(Telemetry.dump_window))
    monkeypatch.setattr(RecordedWindow, "arrays", noted(RecordedWindow.arrays))
    asyncio.run(run())
    assert len(threads) == 3
    assert threading.current_thread() not in threads
    assert queue.close(timeout_s=LONG_S)


def test_guard_is_shown_and_switched(served: ServedModel):
    settings = ServingSettings("m", threads=1, guard=True)
    guarded = open_served(served.model, settings)
    queue = BatchingQueue(guarded.answer, None, max_waiting=9, **ALONE)
    made = make_app(Endpoint("m", "1", guarded, queue, HttpLimits()))

    async def switched(client: httpx.AsyncClient, content: object) -> httpx.Response:
        return await client.post("/v2/guard", json=content)

    async def run() -> None:
        async with connected(made) as client:
            before = (await client.get("/v2/guard")).json()
            assert (before["mode"], before["pinned"]) == ("kernels", None)
            assert set(before["rungs"]) == {"kernels", "functions"}
            assert (await switched(client, {"pin": "functions"})).json()["mode"] == "functions"
            answer = await infer(client)
            head = json.loads(answer.content[: int(answer.headers[HEADER_LENGTH])])
            assert head["parameters"] == {"moh_rung": "functions"}
            wrong = await switched(client, {"pin": "nothing"})
            assert wrong.status_code == 400
            assert "there is no fallback level 'nothing'" in wrong.json()["error"]
            for content in ({"pin": 1}, {"pinned": None}, ["pin"], {"drift": None}):
                assert (await switched(client, content)).status_code == 400
            assert not (await client.get("/v2/guard")).json()["drifting"]
            assert (await switched(client, {"drift": "blocks.0.attn"})).json()["drifting"]
            assert (await client.post("/v2/guard", content=b" " * 5000)).status_code == 413
            text = (await client.get("/metrics")).text
            assert 'moh_mode{model="m",rung="functions",version="1"} 1.0' in text
            assert (await switched(client, {"pin": None})).json()["pinned"] is None

    asyncio.run(run())
    assert queue.close(timeout_s=LONG_S)
    guarded.close()


def test_model_without_a_guard_has_no_switch(app: Callable[..., Starlette]):
    async def run() -> None:
        async with connected(app()) as client:
            assert (await client.get("/v2/guard")).status_code == 404

    asyncio.run(run())


def json_request() -> bytes:
    return write_request({"x": np.ones((1, 2, WIDTH), np.float32)}, is_binary=False).content


def test_json_has_a_limit_of_its_own_and_binary_tensors_do_not(
    app: Callable[..., Starlette], held: Held
):
    held.gate.set()
    text = json_request()

    async def run() -> None:
        limits = replace(HttpLimits(), max_json_bytes=len(text) - 1)
        async with connected(app(limits=limits)) as client:
            refused = await client.post(INFER, content=text)
            assert refused.status_code == 413
            assert "Send tensors as binary data" in refused.json()["error"]
            assert (await infer(client)).status_code == 200
        async with connected(app(limits=replace(HttpLimits(), max_json_bytes=10))) as client:
            refused = await infer(client)  # its head is JSON
            assert refused.status_code == 413
            assert "bytes of JSON, expected at most 10." in refused.json()["error"]

    asyncio.run(run())


def test_worker_without_memory_ends(
    app: Callable[..., Starlette],
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)

    def starved(inputs: Tensors) -> dict[str, np.ndarray]:
        raise MemoryError

    held.replies = starved
    held.gate.set()

    async def run() -> None:
        async with connected(app()) as client:
            await infer(client)

    asyncio.run(run())
    assert codes == [OUT_OF_MEMORY]
    assert "there is no memory left: the worker ends." in capsys.readouterr().err

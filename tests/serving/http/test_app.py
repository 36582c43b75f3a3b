import asyncio
import functools
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
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.http.app import OUT_OF_MEMORY, Endpoint, make_app
from moh_deploy.serving.http.protocol import HEADER_LENGTH, read_answer, write_request
from moh_deploy.serving.http.queue import BatchingQueue, HttpLimits, Tensors
from moh_deploy.serving.metrics import parse_text
from moh_deploy.serving.served_model import Reply, ServedModel, open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.telemetry import RecordedWindow, Telemetry
from moh_deploy.serving.telemetry.otlp import INTERVAL
from tests.handmade_package import WIDTH
from tests.serving.telemetry.collector import collecting

S = TypeVar("S")
T = TypeVar("T")
LONG_S = 60.0
ASKED = write_request({"x": np.ones((1, 2, WIDTH), np.float32)})
INFER = "/v2/models/m/infer"
ALONE: Any = {"instances": 1, "max_batch": 1, "max_delay_s": 0.0}


@pytest.fixture(scope="module")
def served(package: OnnxPackage) -> Iterator[ServedModel]:
    opened = open_served(PackageDir(package.root), ServingSettings("m", threads=1))
    yield opened
    opened.close()


class Held:
    """A model that answers its input when `gate` is opened, or raises `error`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.runs = 0
        self.error: BaseException | None = None

    def __call__(self, inputs: Tensors, sizes: Sequence[int] = ()) -> Reply:
        assert self.gate.wait(LONG_S)
        self.runs += 1
        if self.error is not None:
            raise self.error
        return Reply({"y": inputs["x"]}, "kernels")


@pytest.fixture
def held() -> Held:
    return Held()


AppOf = Callable[..., Starlette]


@pytest.fixture
def app_of() -> Iterator[AppOf]:
    """Makes applications of models; `answer` stands for one."""
    queues = []

    def make(
        served: ServedModel,
        answer: Held | None = None,
        *,
        max_waiting: int = 100,
        limits: HttpLimits | None = None,
        hung_s: float = LONG_S,
    ) -> Starlette:
        own = {"max_waiting": max_waiting, "hung_s": hung_s, **ALONE}
        queues.append(BatchingQueue(answer or served.answer, None, **own))
        return make_app(Endpoint("m", "1", served, queues[-1], limits or HttpLimits()))

    yield make
    assert all(queue.close(timeout_s=LONG_S) for queue in queues)


@pytest.fixture
def app(served: ServedModel, held: Held, app_of: AppOf) -> Iterator[AppOf]:
    yield functools.partial(app_of, served, held)
    held.gate.set()


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own."""

    @functools.wraps(test)
    def run(*fixtures: Any, **named: Any) -> None:
        asyncio.run(test(*fixtures, **named))  # type: ignore[arg-type]

    return run


def connected(app: Starlette) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=LONG_S)


async def infer(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post(INFER, content=ASKED.content, headers=ASKED.headers)


async def wait_for(client: httpx.AsyncClient, start: str, value: float = 1) -> None:
    """Wait until a metric has reached a value."""
    while await metric(client, start) < value:
        await asyncio.sleep(0.001)


async def metric(client: httpx.AsyncClient, start: str) -> float:
    text = (await client.get("/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(start))


@on_loop
async def test_full_queue_gets_503_and_when_to_come_again(app: AppOf, held: Held):
    async with connected(app(max_waiting=1)) as client:
        running = asyncio.create_task(infer(client))
        await wait_for(client, "moh_batch_samples_count")
        waiting = asyncio.create_task(infer(client))
        await wait_for(client, "moh_queue_waiting_requests")
        refused = await infer(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json() == {"error": "1 requests wait already, which is the limit."}
        held.gate.set()
        assert [(await item).status_code for item in (running, waiting)] == [200, 200]


@on_loop
async def test_late_answer_is_504_and_goes_to_nobody(app: AppOf, held: Held):
    limits = replace(HttpLimits(), request_timeout_s=0.05)
    async with connected(app(limits=limits)) as client:
        late = await asyncio.gather(infer(client), infer(client))
        assert [response.status_code for response in late] == [504, 504]
        assert late[0].json() == {"error": "there was no answer within 0.05 s."}
        held.gate.set()
        answer = await infer(client)
        assert answer.status_code == 200
        # The one that had begun, and the last: the other one was taken out of the queue.
        assert held.runs == 2
        assert await metric(client, 'moh_requests_total{code="504"') == 2


@on_loop
async def test_client_may_wait_for_less(app: AppOf):
    async with connected(app()) as client:
        content = {"inputs": [], "parameters": {"timeout": 1000}}
        x = {"name": "x", "datatype": "FP32", "shape": [1, 1, WIDTH], "data": [0] * WIDTH}
        late = await client.post(INFER, json={**content, "inputs": [x]})
        assert late.json() == {"error": "there was no answer within 0.001 s."}


@on_loop
async def test_request_of_a_client_that_left_is_not_run(app: AppOf, held: Held):
    made = app()
    async with connected(made) as client:
        running = asyncio.create_task(infer(client))
        await wait_for(client, "moh_batch_samples_count")
        await _leave(made)
        assert await metric(client, 'moh_requests_total{code="499"') == 1
        held.gate.set()
        assert (await running).status_code == 200
        assert (await infer(client)).status_code == 200
        assert held.runs == 2


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


@on_loop
async def test_answer_is_held_until_it_is_sent(app: AppOf, held: Held):
    held.gate.set()
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


@pytest.mark.parametrize(
    ("error", "status", "message", "said"),
    [
        (BackendError("it failed."), 500, "it failed.", "error: it failed.\n"),
        # A token that the model has not: which only a run can tell.
        (ConfigError("input 'ids' is 99."), 400, "input 'ids' is 99.", ""),
        (
            KeyError("secret"),
            500,
            "this is a bug of moh-deploy: KeyError was not expected.",
            "KeyError: 'secret'",
        ),
    ],
    ids=["failed", "client's fault", "bug"],
)
@on_loop
async def test_failed_run_is_a_status_and_a_sentence_and_its_traceback_is_not_for_clients(
    app: AppOf,
    held: Held,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
    message: str,
    said: str,
):
    held.gate.set()
    held.error = error
    async with connected(app()) as client:
        failed = await infer(client)
    assert (failed.status_code, failed.json()) == (status, {"error": message})
    err = capsys.readouterr().err
    assert said in err if said.startswith("Key") else err == said


@on_loop
async def test_failed_runs_fill_no_log_and_are_counted(
    app: AppOf, held: Held, capsys: pytest.CaptureFixture[str]
):
    held.gate.set()
    held.error = BackendError("ONNX Runtime failed.")
    async with connected(app()) as client:
        texts = [(await client.get("/metrics")).text]
        for _ in range(50):
            assert (await infer(client)).status_code == 500
        texts.append((await client.get("/metrics")).text)
    counts = re.findall(r'^moh_requests_total\{code="500".* (\S+)$', "".join(texts), re.MULTILINE)
    # An alert sees what grows: it would miss a first error that was not 0 before.
    assert counts == ["0.0", "50.0"]
    assert capsys.readouterr().err == 20 * "error: ONNX Runtime failed.\n"


@on_loop
async def test_server_whose_instances_all_hang_is_not_ready(app: AppOf, held: Held):
    made = app(hung_s=0.05)
    async with made.router.lifespan_context(made), connected(made) as client:
        ready = [(await client.get("/v2/health/ready")).status_code]
        running = asyncio.create_task(infer(client))
        await wait_for(client, "moh_hung_runs")
        ready += [
            (await client.get(f"/v2/{path}/ready")).status_code for path in ("health", "models/m")
        ]
        assert ready == [200, 503, 503]
        assert (await client.get("/v2/health/live")).status_code == 200
        held.gate.set()
        assert (await running).status_code == 200
        # The instance is free a moment behind its answer.
        async with asyncio.timeout(LONG_S):
            while (await client.get("/v2/health/ready")).json() != {"ready": True}:
                await asyncio.sleep(0.001)


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("error", [BackendError("it failed."), KeyError("bug")])
@on_loop
async def test_log_lines_of_a_failed_request_have_its_trace(
    app: AppOf,
    held: Held,
    error: Exception,
    capsys: pytest.CaptureFixture[str],
):
    held.gate.set()
    held.error = error
    said = []
    for traceparent in (f"00-{TRACE_ID}-00f067aa0ba902b7-00", "00-not-a-trace\tanything"):
        async with connected(app()) as client:
            headers = {**ASKED.headers, "traceparent": traceparent}
            failed = await client.post(INFER, content=ASKED.content, headers=headers)
        assert failed.status_code == 500
        assert "traceparent" not in failed.headers
        said.append(capsys.readouterr().err)
    assert said[0].startswith(f"error: trace_id={TRACE_ID}: ")
    assert "trace" not in said[1].partition("Traceback")[0]
    assert "anything" not in said[1]


@on_loop
async def test_request_seconds_name_the_last_sampled_trace_of_each_bucket(app: AppOf, held: Held):
    held.gate.set()
    async with connected(app()) as client:
        for trace, flags in (("1" * 32, "01"), (TRACE_ID, "01"), ("2" * 32, "00")):
            headers = {**ASKED.headers, "traceparent": f"00-{trace}-00f067aa0ba902b7-{flags}"}
            await client.post(INFER, content=ASKED.content, headers=headers)
        headers = {"accept": "application/openmetrics-text"}
        text = (await client.get("/metrics", headers=headers)).text
    found = {
        sample.exemplar.labels["trace_id"]: (float(sample.labels["le"]), sample.exemplar.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar
    }
    assert "2" * 32 not in found
    edge, seconds = found[TRACE_ID]
    assert 0 < seconds <= edge


@on_loop
async def test_collector_gets_what_metrics_show(
    served: ServedModel, app_of: AppOf, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(INTERVAL, "10")
    with collecting() as collector:
        settings = ServingSettings("m", threads=1, otlp=collector.url)
        opened = open_served(served.model, settings)
        made = app_of(opened)
        async with made.router.lifespan_context(made), connected(made) as client:
            assert (await infer(client)).status_code == 200
            text = (await client.get("/metrics")).text
        opened.close()
    ours, theirs = parse_text(text, "/metrics"), collector.scraped()
    changing = "moh_otlp_exports_total"  # counts its own export a moment later
    assert ours.keys() == theirs.keys() > {changing, "moh_requests_total", "moh_package_info"}
    for name in ours.keys() - {changing}:
        assert {frozenset(labels.items()): value for labels, value in ours[name]} == theirs[name]


@on_loop
async def test_bodies_together_are_limited(app: AppOf, held: Held):
    limits = replace(HttpLimits(), max_held_bytes=2 * len(ASKED.content) + 10)
    async with connected(app(limits=limits)) as client:
        running = asyncio.create_task(infer(client))
        await wait_for(client, "moh_batch_samples_count")
        refused = await infer(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        held.gate.set()
        assert (await running).status_code == 200
        assert (await infer(client)).status_code == 200  # they are free again


@on_loop
async def test_large_tensors_go_through_threads(app: AppOf, held: Held):
    asked = {"x": np.random.default_rng(0).standard_normal((64, 64, WIDTH)).astype(np.float32)}
    body = write_request(asked)
    held.gate.set()
    async with connected(app()) as client:
        answer = await client.post(INFER, content=body.content, headers=body.headers)
    got = read_answer(answer.content, answer.headers[HEADER_LENGTH])
    assert got["y"].tobytes() == asked["x"].tobytes()


@on_loop
async def test_model_that_nothing_counts_has_no_telemetry(served: ServedModel, app_of: AppOf):
    with served.model.open() as runner:
        async with connected(app_of(ServedModel(served.model, runner))) as client:
            response = await client.post("/v2/telemetry/start")
    assert response.status_code == 404
    assert "an engine gives no gates" in response.json()["error"]


@on_loop
async def test_window_is_dumped_beside_the_event_loop(
    served: ServedModel, app_of: AppOf, monkeypatch: pytest.MonkeyPatch
):
    threads = []

    def noted(work: Callable[[T], S]) -> Callable[[T], S]:
        def do(own: T) -> S:
            threads.append(threading.current_thread())
            return work(own)

        return do

    monkeypatch.setattr(Telemetry, "dump_window", noted(Telemetry.dump_window))
    monkeypatch.setattr(RecordedWindow, "arrays", noted(RecordedWindow.arrays))
    async with connected(app_of(served)) as client:
        assert (await client.get("/v2/telemetry/dump")).status_code == 409
        assert (await client.post("/v2/telemetry/start")).json() == {"recording": True}
        assert (await client.get("/v2/telemetry/dump")).status_code == 200
    assert len(threads) == 3
    assert threading.current_thread() not in threads


@on_loop
async def test_guard_is_shown_and_switched(served: ServedModel, app_of: AppOf):
    guarded = open_served(served.model, ServingSettings("m", threads=1, guard=True))

    async def switched(client: httpx.AsyncClient, content: object) -> httpx.Response:
        return await client.post("/v2/guard", json=content)

    async with connected(app_of(guarded)) as client:
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
    guarded.close()


@on_loop
async def test_model_without_a_guard_has_no_switch(app: AppOf):
    async with connected(app()) as client:
        assert (await client.get("/v2/guard")).status_code == 404


@on_loop
async def test_json_has_a_limit_of_its_own_and_binary_tensors_do_not(app: AppOf, held: Held):
    held.gate.set()
    text = write_request({"x": np.ones((1, 2, WIDTH), np.float32)}, is_binary=False).content
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


@on_loop
async def test_worker_without_memory_ends(
    app: AppOf,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    held.error = MemoryError()
    held.gate.set()
    async with connected(app()) as client:
        await infer(client)
    assert codes == [OUT_OF_MEMORY]
    assert "there is no memory left: the worker ends." in capsys.readouterr().err

"""The routes of the server: the Open Inference Protocol v2, and metrics.

The event loop reads and writes; a model runs on the threads of its queue. A refused request
gets `{"error": "..."}` and the status that says whose fault it is.
"""

import asyncio
import io
import json
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from moh_deploy import __version__
from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.package import TensorInfo
from moh_deploy.serving.guard.guard import Guard
from moh_deploy.serving.http.connection import HeldBytes, InTurn, address_of, received_body
from moh_deploy.serving.http.protocol import HEADER_LENGTH, InferRequest, read_request, write_answer
from moh_deploy.serving.http.queue import BatchingQueue, HttpLimits, Refusal
from moh_deploy.serving.http.tensors import DATATYPES
from moh_deploy.serving.metrics import Family, Trace, exposition, single
from moh_deploy.serving.process_health import LimitedLog, StatusCounts
from moh_deploy.serving.served_model import Reply, ServedModel
from moh_deploy.serving.telemetry import Telemetry
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.npz import write_npz

OUT_OF_MEMORY = 71  # EX_OSERR of sysexits.h: the worker ends, and another one begins

_TICK_S = 0.25

# The status that is counted, as by nginx, for a client that did not wait for its answer.
_GONE = 499


@dataclass
class Endpoint:
    """A model to serve: its name, its queue, its limits."""

    name: str  # the model's name, as clients have it
    version: str  # its version, as clients have it
    served: ServedModel
    queue: BatchingQueue  # answers its requests
    limits: HttpLimits  # sizes, times and numbers of requests
    restarts: int = 0  # how often its process was started again
    _counts: StatusCounts = field(default_factory=StatusCounts, init=False)
    _in_turn: InTurn = field(default_factory=InTurn, init=False)
    _is_ready: bool = field(default=False, init=False)
    _log: LimitedLog = field(default_factory=LimitedLog, init=False)

    def __post_init__(self) -> None:
        self._held = HeldBytes(self.limits.max_held_bytes)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._is_ready = True
        if self.served.export is not None:
            self.served.export.start(self._families)
        ticking = asyncio.create_task(self._tick())
        yield
        ticking.cancel()
        self._log.close()

    async def _tick(self) -> None:
        """Let the guard follow its control file and the clock where no request comes."""
        guard = self.served.guard
        while guard is not None:
            await asyncio.sleep(_TICK_S)
            await asyncio.to_thread(guard.tick)

    async def server(self, _: Request) -> Response:
        extensions = ["binary_tensor_data"]
        return _json({"name": "moh-deploy", "version": __version__, "extensions": extensions})

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request, **of: str) -> Response:
        is_ready = self._is_ready and not self.queue.runs.are_all_hung
        return _json({**of, "ready": is_ready}, 200 if is_ready else 503)

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return await self.ready(request, name=self.name)

    async def model(self, request: Request) -> Response:
        self._check_model(request)
        return _json(
            {
                "name": self.name,
                "versions": [self.version],
                "platform": "moh-deploy",
                "inputs": [_tensor_json(info) for info in self.served.inputs],
                "outputs": [_tensor_json(info) for info in self.served.outputs],
            }
        )

    async def metrics(self, request: Request) -> Response:
        text, content_type = exposition(self._families(), request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    def _families(self) -> list[Family]:
        families = (
            *self.served.families(),
            *self.queue.families(),
            *self._counts.families(),
            single(
                "moh_worker_restarts_total",
                "counter",
                self.restarts,
                "How often the process that answers was started again.",
            ),
        )
        # All say which model they are of: alert rules ask for that.
        model = {"model": self.name, "version": self.version}
        return [
            replace(
                family,
                samples=tuple(
                    replace(series, labels={**model, **series.labels}) for series in family.samples
                ),
            )
            for family in families
        ]

    async def infer(self, request: Request) -> Response:
        start, trace = time.monotonic(), _trace(request)
        try:
            response = await self._infer(request)
        except ClientDisconnect:
            self._counts.note(_GONE, time.monotonic() - start, trace)
            return Response(status_code=400)  # it is not sent
        except Exception as error:
            response = await self.failed(request, error)
        self._counts.note(response.status_code, time.monotonic() - start, trace)
        return response

    async def _infer(self, request: Request) -> Response:
        self._check_model(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal("compressed bodies are not taken.", status=415)
        address = address_of(request)
        json_size = request.headers.get(HEADER_LENGTH)
        async with received_body(
            request, self.limits, self._held, is_json=json_size is None
        ) as content:
            num_json = len(content)
            if json_size and json_size[:20].isdecimal():  # else it is refused when it is read
                num_json = min(int(json_size[:20]), num_json)
            asked = await self._in_turn.do(
                address,
                num_json,
                lambda: read_request(
                    content,
                    json_size,
                    inputs=self.served.inputs,
                    outputs=self.served.outputs,
                    scalars=self.served.scalars,
                    most_json=self.limits.max_json_bytes,
                ),
            )
            try:
                sizes = self.served.check(asked.inputs)
            except ConfigError as error:
                raise Refusal(error.message, hint=error.hint) from error
            self.limits.check_sizes(sizes)
            reply = await self._reply(request, asked)
        body = await self._in_turn.do(
            address,
            sum(reply.outputs[out.name].nbytes for out in asked.outputs if not out.is_binary),
            lambda: write_answer(
                asked,
                reply.outputs,
                model=self.name,
                version=self.version,
                parameters={"moh_rung": reply.rung},
            ),
        )
        self._held.add(address, len(body.content))

        async def sent() -> None:
            self._held.add(address, -len(body.content))

        return Response(body.content, headers=body.headers, background=BackgroundTask(sent))

    async def _reply(self, request: Request, asked: InferRequest) -> Reply:
        """Wait for the queue's answer, as long as the client does."""
        limit = self.limits.request_timeout_s
        timeout_s = min(limit, asked.timeout_s or limit)
        queued = self.queue.submit(asked.inputs)
        reply = asyncio.wrap_future(queued)
        gone = asyncio.ensure_future(_gone(request))
        ends: list[asyncio.Future[Any]] = [reply, gone]
        try:
            await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if reply.done():
                return reply.result()
            if gone.done():
                raise ClientDisconnect
            raise Refusal(f"there was no answer within {timeout_s:g} s.", status=504)
        except ConfigError as error:  # which only the run could tell: an unknown token
            raise Refusal(error.message, hint=error.hint) from error
        finally:
            # Cancelled, it is not begun any more, if it was not yet.
            queued.cancel()
            reply.cancel()
            gone.cancel()

    async def failed(self, request: Request, error: Exception) -> Response:
        """Answer a request that failed; errors of the server go to its log, as far as it takes."""
        if isinstance(error, Refusal):
            after_s = error.retry_after_s
            headers = {} if after_s is None else {"retry-after": str(after_s)}
            if error.closes_connection:
                headers["connection"] = "close"
            return _json({"error": str(error)}, error.status, headers)
        trace = _trace(request)
        traced = "" if trace is None else f"trace_id={trace.trace_id}: "
        if isinstance(error, MoHDeployError):
            self._log.write(f"error: {traced}{error}\n")
            return _json({"error": error.message}, 500)
        if isinstance(error, MemoryError):
            traceback.print_exception(error)
            # All that waits for memory would fail, request by request. A new process has all of it.
            print("error: there is no memory left: the worker ends.", file=sys.stderr, flush=True)
            os._exit(OUT_OF_MEMORY)
        kind = type(error).__name__
        lines = "".join(traceback.format_exception(error))
        self._log.write(f"error: {traced}{kind} was not expected\n{lines}")
        return _json({"error": f"this is a bug of moh-deploy: {kind} was not expected."}, 500)

    def _check_model(self, request: Request) -> None:
        given = request.path_params
        if given["model"] != self.name:
            raise Refusal(
                f"there is no model '{given['model'][:100]}', only '{self.name}'.", status=404
            )
        if given.get("version", self.version) != self.version:
            raise Refusal(
                f"there is no version '{given['version'][:100]}', only '{self.version}'.",
                status=404,
            )


def make_app(endpoint: Endpoint) -> Starlette:
    """Return the application that serves one model."""
    model = ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"]
    return Starlette(
        routes=[
            Route("/v2", endpoint.server),
            Route("/v2/health/live", endpoint.live),
            Route("/v2/health/ready", endpoint.ready),
            *(Route(path, endpoint.model) for path in model),
            *(Route(f"{path}/ready", endpoint.model_ready) for path in model),
            *(Route(f"{path}/infer", endpoint.infer, methods=["POST"]) for path in model),
            Route("/metrics", endpoint.metrics),
            *telemetry_routes(endpoint.served.telemetry),
            *guard_routes(endpoint.served.guard, endpoint.limits),
        ],
        exception_handlers={MoHDeployError: endpoint.failed, HTTPException: _no_route},
        lifespan=endpoint.lifespan,
    )


async def _gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _trace(request: Request) -> Trace | None:
    return Trace.of(request.headers.getlist("traceparent"))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path[:200]}: {error.detail}."
    return _json({"error": sentence}, error.status_code, error.headers)


def _json(
    content: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    text = json.dumps(content, separators=(",", ":"))
    return Response(text, status, headers, media_type="application/json")


def _tensor_json(info: TensorInfo) -> dict[str, object]:
    shape = [size if isinstance(size, int) else -1 for size in info.shape]
    return {"name": info.name, "datatype": DATATYPES.get(info.dtype, info.dtype), "shape": shape}


# Routes that record what routers do with each request for a while, for `profile` and `watch`.


def telemetry_routes(telemetry: Telemetry | None) -> list[Route]:
    """Return the routes of a served model; of an engine, without telemetry, they say so."""

    def counting() -> Telemetry:
        if telemetry is None:
            raise Refusal(
                "an engine gives no gates: nothing of its routing can be read.", status=404
            )
        return telemetry

    async def start(request: Request) -> Response:
        if unknown := sorted(set(request.query_params) - {"sample_every"}):
            raise Refusal(f"there is no parameter '{unknown[0][:40]}', expected sample_every.")
        text = request.query_params.get("sample_every", "1")
        if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0 and len(text) < 10):
            raise Refusal(f"sample_every is '{text[:20]}', expected a whole number from 1.")
        counting().start_window(sample_every=int(text))
        return JSONResponse({"recording": True})

    async def stop(_: Request) -> Response:
        counting().stop_window()
        return JSONResponse({"recording": False})

    async def dump(_: Request) -> Response:
        window = await asyncio.to_thread(counting().dump_window)
        if window is None:
            raise Refusal(
                "no window was started.", status=409, hint="POST /v2/telemetry/start starts one."
            )
        file = io.BytesIO()
        await asyncio.to_thread(lambda: write_npz(file, window.arrays()))
        return Response(file.getvalue(), media_type="application/octet-stream")

    return [
        Route("/v2/telemetry/start", start, methods=["POST"]),
        Route("/v2/telemetry/stop", stop, methods=["POST"]),
        Route("/v2/telemetry/dump", dump),
    ]


_MOST_BYTES = 4096
_EXPECTED = 'expected {"pin": "LEVEL"}, {"pin": null} to release the switch, or {"drift": "WHAT"}.'


def guard_routes(guard: Guard | None, limits: HttpLimits) -> list[Route]:
    """Return the routes of a guarded model; none where there is no guard."""
    if guard is None:
        return []
    held, short = HeldBytes(4 * _MOST_BYTES), replace(limits, max_body_bytes=_MOST_BYTES)

    async def show(_: Request) -> Response:
        # Its lock may be held by a thread that writes the log.
        shown = await asyncio.to_thread(
            lambda: {
                "mode": guard.mode,
                "pinned": guard.pinned,
                "drifting": guard.is_drifting,
                "rungs": dict(guard.states),
            }
        )
        return JSONResponse(shown)

    async def switch(request: Request) -> Response:
        async with received_body(request, short, held) as content:
            said = parse_json(bytes(content), "the switch", error=Refusal)
        if not isinstance(said, dict) or said.keys() not in ({"pin"}, {"drift"}):
            raise Refusal(f"the switch is of another form: {_EXPECTED}")
        ((key, value),) = said.items()
        if not isinstance(value, str) and not (key == "pin" and value is None):
            raise Refusal(f"{key} is no text: {_EXPECTED}")
        if key == "drift":
            await asyncio.to_thread(guard.drifted, {"alarm": value, "by": "http"})
            return await show(request)
        try:
            await asyncio.to_thread(guard.pin, value, "http")
        except ConfigError as error:
            raise Refusal(error.message) from error
        return await show(request)

    return [Route("/v2/guard", show), Route("/v2/guard", switch, methods=["POST"])]

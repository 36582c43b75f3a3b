"""The routes of the guard, its manual switch and alarms of drift, and those of telemetry."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard.guard import Guard
from moh_deploy.serving.http.body import HeldBytes, received_body
from moh_deploy.serving.http.limits import HttpLimits, Refusal
from moh_deploy.serving.telemetry import RecordedWindow, Telemetry
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.npz import write_npz

# Routes that record what routers do with each request for a while, for `profile` and `watch`.


def telemetry_routes(telemetry: Telemetry | None) -> list[Route]:
    """Return the routes of a served model.

    Args:
        telemetry: Counts routing; None for an engine: then the routes say so.
    """

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
        content = await asyncio.to_thread(_npz, window)
        return Response(content, media_type="application/octet-stream")

    return [
        Route("/v2/telemetry/start", start, methods=["POST"]),
        Route("/v2/telemetry/stop", stop, methods=["POST"]),
        Route("/v2/telemetry/dump", dump),
    ]


def _npz(window: RecordedWindow) -> bytes:
    file = io.BytesIO()
    write_npz(file, window.arrays())
    return file.getvalue()


_MOST_BYTES = 4096
_EXPECTED = 'expected {"pin": "RUNG"}, {"pin": null} to release the switch, or {"drift": "WHAT"}.'


def guard_routes(guard: Guard | None, limits: HttpLimits) -> list[Route]:
    """Return the routes of a guarded model; none where there is no guard."""
    if guard is None:
        return []
    held, short = HeldBytes(4 * _MOST_BYTES), replace(limits, max_body_bytes=_MOST_BYTES)

    async def show(_: Request) -> Response:
        # Its lock may be held by a thread that writes the log.
        return JSONResponse(
            await asyncio.to_thread(
                lambda: {
                    "mode": guard.mode,
                    "pinned": guard.pinned,
                    "drifting": guard.is_drifting,
                    "rungs": dict(guard.states),
                }
            )
        )

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

    return [
        Route("/v2/guard", show),
        Route("/v2/guard", switch, methods=["POST"]),
    ]

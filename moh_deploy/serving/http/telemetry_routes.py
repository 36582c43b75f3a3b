"""Routes that record what routers do with each request for a while, for `profile` and `watch`."""

from __future__ import annotations

import asyncio
import io

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from moh_deploy.serving.http.refusal import Refusal
from moh_deploy.serving.telemetry import RecordedWindow, Telemetry
from moh_deploy.system.npz import write_npz


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

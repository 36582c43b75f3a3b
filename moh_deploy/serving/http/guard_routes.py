"""The route that shows what the guard does, and takes its manual switch and alarms of drift."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard.guard import Guard
from moh_deploy.serving.http.body import HeldBytes, received_body
from moh_deploy.serving.http.limits import HttpLimits
from moh_deploy.serving.http.refusal import Refusal
from moh_deploy.system.bounded_json import parse_json

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

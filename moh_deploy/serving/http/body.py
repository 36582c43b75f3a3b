"""Receive the body of a request, within limits of size, time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.requests import ClientDisconnect, Request

from moh_deploy.serving.http.limits import HttpLimits
from moh_deploy.serving.http.refusal import Refusal

_LINGER_S = 2.0
"""How long the rest of a body that is too large is read, and dropped: a client that is still
sending would see a connection that breaks, and not the answer."""


class HeldBytes:
    """Counts the bytes of all requests in a server, and refuses what would be too many.

    Args:
        most: How many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    @contextmanager
    def by_a_request(self) -> Iterator[HeldByRequest]:
        """Yield the count of one request, whose bytes are free again behind the block."""
        own = HeldByRequest(self)
        try:
            yield own
        finally:
            self._held -= own.num_bytes

    def add(self, num_bytes: int) -> None:
        """Count more bytes.

        Raises:
            Refusal: They would be too many.
        """
        if self._held + num_bytes > self._most:
            raise Refusal(
                f"the server holds {self._held} bytes of requests, of {self._most} at most.",
                status=503,
                retry_after_s=1,
            )
        self._held += num_bytes


class HeldByRequest:
    """The bytes that one request holds."""

    def __init__(self, everyone: HeldBytes) -> None:
        self._everyone = everyone
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count more bytes. Raises as `HeldBytes.add` does."""
        self._everyone.add(num_bytes)
        self.num_bytes += num_bytes


_BYTES_OF_JSON = 32
"""How much a byte of JSON takes once it is read, at the most: `[],` is a list of 56 bytes and more.
"""


async def read_body(
    request: Request, limits: HttpLimits, held: HeldByRequest, *, is_json: bool = False
) -> bytes:
    """Return the body of a request.

    Args:
        is_json: No part of it is binary.

    Raises:
        Refusal: It is too large (413), too slow (408), or too much beside the others' (503).
        ClientDisconnect: The client has gone away.
    """
    announced = int(request.headers.get("content-length", "0"))  # it is digits
    most = min(limits.max_body_bytes, limits.max_json_bytes) if is_json else limits.max_body_bytes
    if announced > most:
        raise await _too_large(request, announced, most, is_json=is_json)
    try:
        content = await asyncio.wait_for(
            _received(request, most, held, is_json=is_json), limits.read_timeout_s
        )
    except TimeoutError:
        raise Refusal(
            f"the body did not arrive within {limits.read_timeout_s:g} s.",
            status=408,
            closes_connection=True,
        ) from None
    if is_json:
        held.add((_BYTES_OF_JSON - 1) * len(content))
    return content


async def _received(request: Request, most: int, held: HeldByRequest, *, is_json: bool) -> bytes:
    chunks, is_complete = [], False
    while not is_complete:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        is_complete = not message.get("more_body", False)
        chunk = message.get("body", b"")
        if held.num_bytes + len(chunk) > most:
            raise await _too_large(request, held.num_bytes + len(chunk), most, is_json=is_json)
        held.add(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


async def _too_large(request: Request, num_bytes: int, most: int, *, is_json: bool) -> Refusal:
    if "expect" not in request.headers:  # else the client waits to be asked for its body
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_dropped(request), _LINGER_S)
    return Refusal(
        f"the body has {num_bytes} bytes or more, expected at most {most}.",
        status=413,
        hint="Send tensors as binary data: it is smaller, and its limit is larger."
        if is_json
        else None,
        closes_connection=True,
    )


async def _dropped(request: Request) -> None:
    while (await request.receive()).get("more_body"):
        pass

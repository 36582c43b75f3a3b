"""Receive the body of a request, within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar
from weakref import WeakValueDictionary

from starlette.requests import ClientDisconnect, Request

from moh_deploy.serving.http.limits import HttpLimits, Refusal

# Read and write large JSON beside the event loop, where it holds up other clients the least.

_Made = TypeVar("_Made")

_INLINE_BYTES = 64 * 1024
"""Up to this size the work is done on the event loop: a thread would take longer."""


class InTurn:
    """Does work on another thread: one piece at a time, and of each address by turns.

    Python reads JSON without a pause, and all threads wait. Two at a time would only take longer.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "large JSON")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def do(self, address: str, num_bytes: int, work: Callable[[], _Made]) -> _Made:
        """Return the result of work on so many bytes for a client."""
        if num_bytes <= _INLINE_BYTES:
            return work()
        own = self._turns.setdefault(address, asyncio.Lock())
        async with own:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, _without_collecting, work)


def _without_collecting(work: Callable[[], _Made]) -> _Made:
    # The collector would visit a million lists again and again: ten times as long as to read them.
    gc.disable()
    try:
        return work()
    except Refusal as error:
        # Frames would hold the lists until the event loop drops them.
        raise error.with_traceback(None) from None
    finally:
        gc.enable()


_LINGER_S = 2.0
"""How long the rest of a body that is too large is read, and dropped: a client that is still
sending would see a connection that breaks, and not the answer."""


class HeldBytes:
    """Counts the bytes of all requests in a server, and refuses what would be too many.

    Args:
        most: How many there may be; half of them from one address.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_address: Counter[str] = Counter()

    def check(self, address: str, num_bytes: int) -> None:
        """Refuse more bytes of a client where they would be too many.

        Raises:
            Refusal: With what is held, and the limit.
        """
        for held, by, most in (
            (self._by_address.total(), "", self._most),
            (self._by_address[address], " from your address", self._most // 2),
        ):
            if held + num_bytes > most:
                raise Refusal(
                    f"the server holds {held} bytes of requests{by}, of {most} at most.",
                    status=503,
                    retry_after_s=1,
                )

    def add(self, address: str, num_bytes: int) -> None:
        """Count bytes of a client, or, of a negative number, count them no longer."""
        self._by_address[address] += num_bytes
        if not self._by_address[address]:
            del self._by_address[address]


@asynccontextmanager
async def received_body(
    request: Request, limits: HttpLimits, held: HeldBytes, *, is_json: bool = False
) -> AsyncIterator[bytearray]:
    """Receive the body of a request, whose bytes are held within the block.

    Args:
        is_json: No part of it is binary.

    Raises:
        Refusal: It is too large (413), too slow (408), or too much beside the others' (503).
        ClientDisconnect: The client has gone away.
    """
    content, address = bytearray(), address_of(request)
    try:
        await _receive(request, limits, content, held, is_json=is_json)
        yield content
    finally:
        held.add(address, -len(content))


def address_of(request: Request) -> str:
    """Return the address of a client, or of the proxy that it comes by."""
    return "" if request.client is None else request.client.host


async def _receive(
    request: Request, limits: HttpLimits, content: bytearray, held: HeldBytes, *, is_json: bool
) -> None:
    """Append the body of a request to `content`, and count its bytes as held."""
    address = address_of(request)
    most = min(limits.max_body_bytes, limits.max_json_bytes) if is_json else limits.max_body_bytes
    size = int(request.headers.get("content-length", "0"))  # it is digits
    is_complete = False
    try:
        async with asyncio.timeout(limits.read_timeout_s):
            while not is_complete and size <= most:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part = message.get("body", b"")
                held.check(address, len(part))
                held.add(address, len(part))
                content += part
                size, is_complete = max(size, len(content)), not message.get("more_body")
    except TimeoutError:
        raise Refusal(
            f"the body did not arrive within {limits.read_timeout_s:g} s.",
            status=408,
            closes_connection=True,
        ) from None
    if size <= most:
        return
    if "expect" not in request.headers:  # else the client waits to be asked for its body
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not is_complete:
                    is_complete = not (await request.receive()).get("more_body")
    hint = "Send tensors as binary data: it is smaller, and its limit is larger."
    raise Refusal(
        f"the body has {size} bytes or more, expected at most {most}.",
        status=413,
        hint=hint if is_json else None,
        closes_connection=True,
    )

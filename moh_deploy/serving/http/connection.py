"""Connections of clients: each phase has a time limit, and clients share the connections."""

import asyncio
import gc
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import ClassVar, TypeVar, cast
from weakref import WeakValueDictionary

import h11
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from moh_deploy.serving.http.queue import HttpLimits, Refusal

# Processes may often have 1024 files; a server without a free one accepts no connection.
_MOST_CONNECTIONS = 800

# So many more are closed: to find them takes a look at every connection.
_SPARE = 40

# By then requests that came with their connection are read: their clients do not wait.
_GRACE_S = 0.1

# Bytes of an answer that a client has to read within `limit_s`.
_PIECE = 64 * 1024


class TimedConnection(H11Protocol):
    """A connection of uvicorn's, closed where a client sends or reads too slowly.

    uvicorn itself limits only how long a connection idles between two requests. When there are too
    many connections, the address with the most loses those that have waited for it the longest.
    """

    # How long a request may take to arrive, and how long a client may take to read 64 KiB of an
    # answer.
    limit_s: ClassVar[float]

    _arrival: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._arrival = self.loop.call_later(self.limit_s, self._arrives_too_late)
        if len(self.connections) > _MOST_CONNECTIONS:
            self.loop.call_later(_GRACE_S, self._make_room)

    def _make_room(self) -> None:
        connections = cast(set[TimedConnection], self.connections)
        if len(connections) <= _MOST_CONNECTIONS:
            return
        counts = Counter(connection._address for connection in connections)
        waiting = defaultdict[str, list[TimedConnection]](list)
        for connection in sorted(connections, key=lambda item: -item._idle_since):
            if connection._waits:
                waiting[connection._address].append(connection)
        for _ in range(len(connections) - _MOST_CONNECTIONS + _SPARE):
            ((address, _),) = counts.most_common(1)
            if not waiting[address]:
                return
            connection = waiting[address].pop()
            connection.transport.abort()
            connections.discard(connection)
            counts[address] -= 1

    @property
    def _address(self) -> str:
        return "" if self.client is None else self.client[0]

    @property
    def _waits(self) -> bool:
        """Tell whether the client has to act next: to send a request, or to read an answer."""
        cycle = self.cycle
        is_answered = cycle is None or cycle.response_complete
        return is_answered or cycle.more_body or self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        state = self.conn.their_state
        is_arriving = state is h11.SEND_BODY or (state is h11.IDLE and self.conn.trailing_data[0])
        if not is_arriving:
            _stop(self._arrival)
            self._arrival = None
        elif self._arrival is None:
            self._arrival = self.loop.call_later(self.limit_s, self._arrives_too_late)

    def _arrives_too_late(self) -> None:
        self._arrival = None
        if self.cycle and not self.cycle.response_complete:
            return  # the application waits for the body, and has a limit of its own
        if not self.cycle and self.conn.trailing_data[0]:
            self._refuse(408, f"the request did not arrive within {self.limit_s:g} s.")
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "the request is no valid HTTP.")

    def _refuse(self, status: int, sentence: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else it would end up in a body
            content = json.dumps({"error": sentence}).encode()
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
            self.transport.write(head.encode() + content)
        self.transport.close()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        _stop(self._reading)
        self._reading = self.loop.call_later(self.limit_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _stop(self._reading)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also one whose client has not read the rest of its answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        _stop(self._arrival)
        _stop(self._reading)
        super().connection_lost(exc)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def in_pieces(app: ASGIApp) -> ASGIApp:
    """Return an application that sends a large body as fast as the client reads it."""

    async def paced(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_pieces(message: Message) -> None:
            body = memoryview(message.get("body", b""))
            while len(body) > _PIECE:
                await send({**message, "body": bytes(body[:_PIECE]), "more_body": True})
                body = body[_PIECE:]
            await send({**message, "body": bytes(body)} if message.get("body") else message)

        await app(scope, receive, send_in_pieces)

    return paced


# Read and write large JSON beside the event loop, where it holds up other clients the least.

_Made = TypeVar("_Made")

# Up to this size the work is done on the event loop: a thread would take longer.
_INLINE_BYTES = 64 * 1024


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


# How long the rest of a body that is too large is read, and dropped: a client that is still sending
# would see a connection that breaks, and not the answer.
_LINGER_S = 2.0


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

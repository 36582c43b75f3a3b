"""Connections of clients: each phase has a time limit, and clients share the connections."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from http import HTTPStatus
from typing import ClassVar, cast

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_MOST_CONNECTIONS = 800
"""Processes may often have 1024 files; a server that has none left accepts no connection."""

_SPARE = 40
"""So many more are closed: to find them takes a look at every connection."""

_GRACE_S = 0.1
"""By then requests that came with their connection are read: their clients do not wait."""

_PIECE = 64 * 1024
"""Bytes of an answer that a client has to read within `limit_s`."""


class TimedConnection(H11Protocol):
    """A connection of uvicorn's, closed where a client sends or reads too slowly.

    uvicorn itself limits only how long a connection idles between two requests. When there are too
    many connections, the address with the most loses those that have waited for it the longest.

    Attributes:
        limit_s: How long a request may take to arrive, and how long a client may take to read
            64 KiB of an answer.
    """

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
        """Whether the client has to act next: to send a request, or to read an answer."""
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

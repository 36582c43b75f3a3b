"""Connections that clients cannot keep busy for nothing: every phase of one has a time limit."""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_MOST_CONNECTIONS = 800
"""Processes may often have 1024 files; a server that has none left accepts nobody."""

_LEAST_READ = 64 * 1024
"""So many bytes of an answer have to leave this process in `limit_s`."""


class TimedConnection(H11Protocol):
    """A connection of uvicorn's, closed where a client sends or reads too slowly.

    uvicorn itself limits only how long a connection idles between two requests.

    Attributes:
        limit_s: How long a request may take to arrive, and a client may read nothing, or next to
            nothing, of its answer.
    """

    limit_s: ClassVar[float]

    _arrival: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
            return
        self._arrival = self.loop.call_later(self.limit_s, self._arrives_too_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        state = self.conn.their_state
        is_arriving = state is h11.SEND_BODY or (state is h11.IDLE and self.conn.trailing_data[0])
        if not is_arriving:
            self._stop_arrival()
        elif self._arrival is None:
            self._arrival = self.loop.call_later(self.limit_s, self._arrives_too_late)

    def _arrives_too_late(self) -> None:
        self._arrival = None
        if self.cycle and not self.cycle.response_complete:
            return  # the application waits for the body, and has a limit of its own
        if not self.cycle and self.conn.trailing_data[0]:
            self._say(408, f"the request did not arrive within {self.limit_s:g} s.")
        self.transport.close()

    def _stop_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._say(400, "the request is no valid HTTP.")
        self.transport.close()

    def _say(self, status: int, sentence: str) -> None:
        content = json.dumps({"error": sentence}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(content))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def _watch_reading(self) -> None:
        """Look after a while how much of the answer is read, again and again."""
        self._stop_reading()
        unread = self.transport.get_write_buffer_size()
        if unread:
            self._reading = self.loop.call_later(self.limit_s, self._go_on_if_read, unread)

    def _go_on_if_read(self, unread: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left and unread - left < _LEAST_READ:
            self.transport.abort()
        else:
            self._watch_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one that still reads its answer is none."""
        if not self.transport.get_write_buffer_size():
            super().timeout_keep_alive_handler()
            return
        if self._reading is None:  # what is left fills no buffer
            self._watch_reading()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_arrival()
        self._stop_reading()
        super().connection_lost(exc)

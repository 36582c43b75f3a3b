"""Clients that read slowly get their answers whole."""

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from moh_deploy.serving.http import connection as connection_module
from moh_deploy.serving.http.connection import HeldBytes, InTurn, TimedConnection, in_pieces
from moh_deploy.serving.http.queue import Refusal
from tests.nightly import nightly

ANSWER = 8 * 2**20
LONG_S = 60.0


class Hurried(TimedConnection):
    """A connection of short limits."""

    limit_s = 1.0


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Send a large body at once."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(ANSWER)})


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server whose system buffers little."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = uvicorn.Config(
            in_pieces(answer), http=Hurried, lifespan="off", log_config=None, timeout_keep_alive=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(LONG_S)


@nightly
def test_client_that_reads_without_a_pause_gets_all_of_a_large_answer(port: int):
    received = 0
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.settimeout(LONG_S)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        # It takes three times the limits.
        while part := connection.recv(2**17):
            received += len(part)
            time.sleep(3.0 * len(part) / ANSWER)
    assert received > ANSWER


def test_connections_that_idle_make_room_and_the_address_with_the_most_gives_it(
    port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection_module, "_MOST_CONNECTIONS", 6)
    monkeypatch.setattr(connection_module, "_SPARE", 1)

    def connected(address: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), LONG_S, (address, 0))

    with ExitStack() as stack:
        few = stack.enter_context(connected("127.0.0.2"))  # the oldest of all
        many = [stack.enter_context(connected("127.0.0.3")) for _ in range(6)]
        # The two oldest of the address that has six.
        assert [connection.recv(1) for connection in many[:2]] == [b"", b""]
        for connection in (few, *many[2:]):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"


class Unread(asyncio.Transport):
    """A connection whose client has bytes left to read."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.num_bytes, self.ended_by = num_bytes, list[str]()

    def get_write_buffer_size(self) -> int:
        return self.num_bytes

    def is_closing(self) -> bool:
        return bool(self.ended_by)

    def close(self) -> None:
        self.ended_by.append("close")

    def abort(self) -> None:
        self.ended_by.append("abort")


@pytest.mark.parametrize(("num_bytes", "ended_by"), [(0, ["close"]), (1, ["abort"])])
def test_idle_connection_ends_at_once_where_its_client_left_an_answer_unread(
    num_bytes: int, ended_by: list[str]
):
    async def idle(transport: Unread) -> None:
        config = uvicorn.Config(answer, lifespan="off", log_config=None)
        config.load()
        connection = Hurried(config, ServerState(), {})
        connection.connection_made(transport)
        connection.timeout_keep_alive_handler()

    transport = Unread(num_bytes)
    asyncio.run(idle(transport))
    assert transport.ended_by == ended_by


def test_one_address_holds_half_of_all_bytes_and_leaves_the_rest_to_others():
    held = HeldBytes(100)
    held.add("a", 50)
    with pytest.raises(Refusal, match=r"holds 50 bytes of requests from your address, of 50 at"):
        held.check("a", 1)
    held.check("b", 50)
    held.add("b", 40)
    with pytest.raises(Refusal, match=r"holds 90 bytes of requests, of 100 at most"):
        held.check("c", 11)
    held.add("a", -50)
    held.check("a", 50)


LARGE = 2**20


def test_large_work_is_done_one_piece_at_a_time_and_addresses_take_turns():
    done: list[str] = []
    running = threading.Semaphore(1)

    def work(name: str) -> None:
        assert running.acquire(blocking=False)
        assert not gc.isenabled()
        done.append(name)
        running.release()

    async def run() -> None:
        line = InTurn()
        asked = [("many", "m1"), ("many", "m2"), ("many", "m3"), ("few", "f1")]
        await asyncio.gather(
            *(line.do(address, LARGE, lambda name=name: work(name)) for address, name in asked)
        )

    asyncio.run(run())
    assert done == ["m1", "f1", "m2", "m3"]
    assert gc.isenabled()


def test_small_work_is_done_at_once_and_a_refusal_comes_through():
    def refused() -> None:
        raise Refusal(threading.current_thread().name)

    async def run(num_bytes: int) -> str:
        with pytest.raises(Refusal) as caught:
            await InTurn().do("a", num_bytes, refused)
        return caught.value.message

    assert asyncio.run(run(1)) == threading.current_thread().name
    assert asyncio.run(run(LARGE)) != threading.current_thread().name
    assert gc.isenabled()

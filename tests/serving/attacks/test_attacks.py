"""One client attacks a server of the default limits; others get right answers, and soon."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.serving.http.protocol import write_request
from tests.handmade_package import WIDTH, write_package
from tests.serving.attacks.good_client import LONG_S, MIB, good_client, peak_mib, resident_mib
from tests.serving.http.running import Running, is_there, running

pytestmark = pytest.mark.nightly

ATTACKER = "127.0.0.2"
ENDED_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_package(tmp_path_factory.mktemp("attacked") / "package")


@pytest.fixture(scope="module")
def runner(package: OnnxPackage) -> Iterator[Runner]:
    with open_runner(package, Variant(threads=1)) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(package: OnnxPackage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    said = tmp_path_factory.mktemp("said") / "stderr.txt"
    with running(package.root, said, "--longest", "seq=512") as found:
        yield found
        assert is_there(found.worker)
        assert said.read_text() == ""


def connected(server: Running, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), LONG_S, (address, 0))


def posted(server: Running, content: bytes, **headers: str) -> int:
    """Send a body, and return the status of its answer."""
    transport = httpx.HTTPTransport(local_address=ATTACKER)
    with httpx.Client(transport=transport, timeout=LONG_S) as client:
        url = f"{server.url}/v2/models/m/infer"
        return client.post(url, content=content, headers=headers).status_code


def at_once(*calls: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert not any(thread.is_alive() for thread in threads)


HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n"


@pytest.mark.parametrize("address", ["127.0.0.1", ATTACKER], ids=["as the others", "its own"])
@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /v2 HTT", b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n", HEAD % 100 + b"\r\n{"],
    ids=["nothing", "headers", "an answer", "a body"],
)
def test_connections_that_wait(server: Running, runner: Runner, sent: bytes, address: str):
    def attack(count: int) -> None:
        for _ in range(count):
            connection = stack.enter_context(connected(server, address))
            # It may have been closed already, where it made room for the next.
            with suppress(OSError):
                connection.sendall(sent)

    with ExitStack() as stack:
        attack(850)
        with good_client(server, runner) as watched:
            attack(150)
            time.sleep(1)
    watched.check()


def test_slow_headers_and_bodies(server: Running, runner: Runner):
    starts = [b"GET /v2 HTTP/1.1\r\nX: ", HEAD % 100_000 + b"\r\n"]
    with ExitStack() as stack, good_client(server, runner) as watched:
        connections = [stack.enter_context(connected(server)) for _ in range(300)]
        for number, connection in enumerate(connections):
            connection.sendall(starts[number % 2])
        for _ in range(10):
            for connection in connections:
                connection.sendall(b"a")
            time.sleep(0.2)
    watched.check()


@pytest.mark.parametrize("part", ["[],", "{},", "1,", "[" * 90 + "]" * 90 + ",", '"é",', "1.5e3,"])
def test_large_json(server: Running, runner: Runner, part: str):
    before = resident_mib(server.worker)
    head = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3,8],"data":['
    body = part * ((4 * MIB - 200) // len(part.encode()))
    content = f"{head}{body[:-1]}]}}]}}".encode()
    statuses: list[int] = []
    with good_client(server, runner) as watched:
        at_once(*[lambda: statuses.append(posted(server, content))] * 6)
    assert statuses == [400] * 6
    watched.check()
    assert peak_mib(server.worker) - before < 1000


def test_largest_batches_of_the_longest_sequences(server: Running, runner: Runner):
    x = np.random.default_rng(0).standard_normal((64, 512, WIDTH)).astype(np.float32)
    bodies = [write_request({"x": x}), write_request({"x": x[:16]}, is_binary=False)]
    bodies.append(write_request({"x": np.repeat(x, 50, 0)}))
    before = resident_mib(server.worker)
    statuses: list[int] = []
    calls = [
        lambda body=body: statuses.append(posted(server, body.content, **body.headers))
        for body in bodies * 3
    ]
    with good_client(server, runner) as watched:
        at_once(*calls)
    assert sorted(statuses) == [200] * 6 + [400] * 3
    watched.check()
    assert resident_mib(server.worker) - before < 200


def test_bodies_that_stay_unfinished(server: Running, runner: Runner):
    before = resident_mib(server.worker)
    with ExitStack() as stack, good_client(server, runner) as watched:
        for _ in range(20):
            connection = stack.enter_context(connected(server, ATTACKER))
            connection.sendall(HEAD % (64 * MIB) + b"inference-header-content-length: 9\r\n\r\n")
            with suppress(OSError):  # refused while it sends
                for _ in range(60):
                    connection.sendall(bytes(MIB))
    watched.check()
    assert peak_mib(server.worker) - before < 1000


def test_answers_that_are_not_read(server: Running, runner: Runner):
    asked = write_request({"x": np.ones((64, 512, WIDTH), np.float32)})
    head = HEAD % len(asked.content)
    head += "".join(f"{name}: {value}\r\n" for name, value in asked.headers.items()).encode()
    with ExitStack() as stack, good_client(server, runner) as watched:
        for _ in range(100):
            connection = stack.enter_context(connected(server, ATTACKER))
            connection.sendall(head + b"\r\n" + asked.content)
        time.sleep(3)
    watched.check()


def test_clients_that_hang_up(server: Running, runner: Runner):
    asked = write_request({"x": np.ones((2, 3, WIDTH), np.float32)})
    whole = HEAD % len(asked.content)
    whole += "".join(f"{name}: {value}\r\n" for name, value in asked.headers.items()).encode()
    whole += b"\r\n" + asked.content
    linger = np.array([1, 0], np.int32).tobytes()  # closing sends a reset
    with good_client(server, runner) as watched:
        for length in range(400):
            with connected(server) as connection:
                if length % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(whole[: len(whole) * length // 400])
    watched.check()


def test_worker_that_stands_still_is_ended_in_time_and_the_next_answers(
    package: OnnxPackage, runner: Runner, tmp_path: Path
):
    asked = {"x": np.ones((2, 3, WIDTH), np.float32)}
    expected = runner.run(asked)["y"]
    with running(package.root, tmp_path / "said") as server, server.client() as client:
        os.kill(server.worker, signal.SIGSTOP)
        began = time.monotonic()
        while is_there(server.worker):
            assert time.monotonic() - began < ENDED_WITHIN_S
            time.sleep(0.05)
        got = server.infer(client, asked)["y"]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

"""One client attacks a server of the default limits; others get right answers, and soon."""

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Runner
from moh_deploy.serving.http.protocol import HEADER_LENGTH, read_answer, write_request
from moh_deploy.serving.served_model import cores
from tests.handmade_package import WIDTH
from tests.serving.http.running import LONG_S, Running, is_there, running

pytestmark = pytest.mark.nightly

ATTACKER = "127.0.0.2"
ENDED_WITHIN_S = 10.0


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
        assert "ended with no sign of life for 5 s" in server.said.read_text()
        assert server.metric("moh_worker_restarts_total") == 1


# A client that asks all the time beside an attack, and compares every answer.


MIB = 2**20
LONGEST_WAIT_S = 2.0
"""No client waits longer for its answer, or for that of a probe, on a machine that is idle else."""


@dataclass
class Watched:
    """Answers that a good client got beside an attack."""

    # Seconds until each answer, the probe's among them.
    waits: list[float] = field(default_factory=list)
    wrong: int = 0  # answers that differ from the package's own
    # Requests that got no answer, or another status.
    failed: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Require that the attack has hurt no other client."""
        assert len(self.waits) >= 6
        assert (self.wrong, self.failed) == (0, [])
        busy = max(1.0, os.getloadavg()[0] / cores())
        assert max(self.waits) < LONGEST_WAIT_S * busy


@contextmanager
def good_client(server: Running, runner: Runner) -> Iterator[Watched]:
    """Ask one server during the block, by raw tensors, by JSON, and for its health."""
    watched, is_over = Watched(), threading.Event()
    thread = threading.Thread(target=_ask, args=(server, runner, watched, is_over))
    thread.start()
    try:
        yield watched
        time.sleep(0.3)
    finally:
        is_over.set()
        thread.join(LONG_S)


def _ask(server: Running, runner: Runner, watched: Watched, is_over: threading.Event) -> None:
    cases = []
    for rows, is_binary in ((1, True), (3, True), (2, False)):
        x = np.random.default_rng(rows).standard_normal((rows, 3, WIDTH)).astype(np.float32)
        cases.append((write_request({"x": x}, is_binary=is_binary), runner.run({"x": x})["y"]))
    while not is_over.is_set():
        for body, expected in cases:
            for path, content in (("/v2/models/m/infer", body), ("/v2/health/live", None)):
                began = time.monotonic()
                try:
                    # A connection of its own for each, as a probe has.
                    asked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONG_S)
                    if content is None:
                        asked.request("GET", path)
                    else:
                        asked.request("POST", path, content.content, content.headers)
                    answer = asked.getresponse()
                    got = answer.read()
                    asked.close()
                except (OSError, http.client.HTTPException) as error:
                    watched.failed.append(f"{path}: {type(error).__name__} {error}")
                    continue
                watched.waits.append(time.monotonic() - began)
                if answer.status != 200:
                    watched.failed.append(f"{path}: {answer.status} {got[:200]!r}")
                elif content is not None:
                    y = read_answer(got, answer.getheader(HEADER_LENGTH))["y"]
                    watched.wrong += not np.allclose(y, expected, rtol=1e-5, atol=1e-6)
        is_over.wait(0.01)


def resident_mib(pid: int) -> int:
    """Return the memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmRSS")


def peak_mib(pid: int) -> int:
    """Return the most memory that a process has had."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) // 1024

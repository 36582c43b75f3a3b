"""A client that asks all the time beside an attack, and compares every answer."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moh_deploy.runtime.base import Runner
from moh_deploy.serving.http.protocol import HEADER_LENGTH, read_answer, write_request
from moh_deploy.serving.served_model import cores
from tests.handmade_package import WIDTH
from tests.serving.http.running import LONG_S, Running

MIB = 2**20
LONGEST_WAIT_S = 2.0
"""No client waits longer for its answer, or for that of a probe, on a machine that is idle else."""


@dataclass
class Watched:
    """Answers that a good client got beside an attack.

    Attributes:
        waits: Seconds until each answer, the probe's among them.
        wrong: Answers that differ from the package's own.
        failed: Requests that got no answer, or another status.
    """

    waits: list[float] = field(default_factory=list)
    wrong: int = 0
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

"""A server of its own process, which tests ask and stop."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from moh_deploy.serving.http.protocol import HEADER_LENGTH, read_answer, write_request
from moh_deploy.serving.metrics import parse_text
from moh_deploy.system.isolate import child_environment
from moh_deploy.system.npz import Array

LONG_S = 120.0


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    process: subprocess.Popen[str]  # the one that was started
    url: str  # where it listens
    port: int  # the port of it
    worker: int  # number of the process that answers
    said: Path  # the file with what it writes to stderr

    def infer(self, client: httpx.Client, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Send one request with raw tensors, and return the outputs."""
        body = write_request(inputs)
        response = client.post(
            f"{self.url}/v2/models/m/infer", content=body.content, headers=body.headers
        )
        assert response.status_code == 200, response.text
        return read_answer(response.content, response.headers.get(HEADER_LENGTH))

    def client(self) -> httpx.Client:
        """Return a client that waits for long."""
        return httpx.Client(timeout=LONG_S)

    def metric(self, name: str) -> float:
        """Return the value of a metric that has one series."""
        text = httpx.get(f"{self.url}/metrics", timeout=LONG_S).text
        ((_, value),) = parse_text(text, self.url)[name]
        return value

    def stop(self) -> int:
        """End it as a system does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LONG_S)


@contextmanager
def running(package: Path, said: Path, *options: str, name: str | None = "m") -> Iterator[Running]:
    """Serve a package at any port; the server is ended with the block."""
    named = [] if name is None else ["--name", name]
    arguments = [str(package), "--port", "0", "--json", *named, *options]
    with said.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "moh_deploy", "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=child_environment(),
        )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        assert lines, said.read_text()
        found = json.loads("".join(lines))
        yield Running(process, found["url"], found["port"], found["worker"], said)
    finally:
        if process.poll() is None:
            process.kill()  # its worker sees that, and ends
        process.wait(LONG_S)
        process.stdout.close()


def is_there(pid: int) -> bool:
    """Tell whether a process is running."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"

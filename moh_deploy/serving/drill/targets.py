"""The servers that a drill breaks: in this process, over HTTP, or one that runs already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.base import Deployed, ModelInterface
from moh_deploy.serving.drill.client import V2Client
from moh_deploy.serving.drill.load import Asking, ServerAnswer
from moh_deploy.serving.served_model import ServedModel, open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.serving.triton.bundled_guard import AUDIT_NAME, CONTROL_NAME, GUARD
from moh_deploy.serving.triton.server import TritonServer, running_server
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.isolate import child_environment
from moh_deploy.system.npz import Array


class Target(ABC):
    """A server that was started with a drill allowed.

    Attributes:
        control: Its control file.
        audit_log: What its guard appends transitions to.
    """

    control: Path
    audit_log: Path

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is, in the words of a report."""

    @abstractmethod
    def connect(self) -> Asking:
        """Return a connection for one client."""

    def kill_worker(self) -> bool:
        """End the process that answers, as `kill -9` does; False if that cannot be done."""
        return False

    def close(self) -> None:  # noqa: B027  (who runs already goes on)
        """End the server."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class InProcess(Target):
    """The served model itself, asked by threads of this process.

    Args:
        model: What is served.
        settings: How; guard, drill, control file and audit log are set here.
        folder: Where control file and audit log are.
    """

    def __init__(self, model: Deployed, settings: ServingSettings, folder: Path) -> None:
        self.control, self.audit_log = folder / "control.json", folder / "audit.jsonl"
        self._served: ServedModel = open_served(model, drilled(settings, folder))

    @property
    def name(self) -> str:
        return "the served model in this process"

    def connect(self) -> Asking:
        return _Direct(self._served)

    def close(self) -> None:
        self._served.close()


@dataclass(frozen=True)
class _Direct:
    """Calls a served model."""

    served: ServedModel

    def __call__(self, inputs: Mapping[str, Array]) -> ServerAnswer:
        reply = self.served.answer(inputs)
        return ServerAnswer(reply.outputs, reply.rung)

    def close(self) -> None:
        """There is no connection."""


class HttpServer(Target):
    """`moh-deploy serve` in a process of its own, on a free port of this machine.

    Args:
        model: What is served.
        policy: Of the guard.
        folder: Where control file, audit log and what the server says are.

    Raises:
        BackendError: It did not start.
    """

    def __init__(self, model: Deployed, policy: Path, folder: Path) -> None:
        self.control, self.audit_log = folder / "control.json", folder / "audit.jsonl"
        self._manifest = model.manifest
        said = folder / "server.log"
        with said.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moh_deploy", "serve", str(model.root), "--port", "0"]
                + ["--name", DRILLED_NAME, "--guard", str(policy), "--drill", "--json"]
                + ["--control", str(self.control), "--audit-log", str(self.audit_log)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(),
                # Ctrl-C is the drill's: asked to end twice, the server would kill its worker.
                start_new_session=True,
            )
        try:
            self._host, self._port = self._listening(said)
        except BaseException:
            self.close()
            raise

    def _listening(self, said: Path) -> tuple[str, int]:
        """Wait until the server says where it listens; `said` is what it says besides."""
        assert self._process.stdout is not None
        # One JSON object, over several lines: where it listens, or why it does not.
        text = b""
        for line in self._process.stdout:
            text += line
            if line.rstrip() == b"}":
                break
        listening = parse_json(text or b"{}", "what the server says", error=BackendError)
        if not (isinstance(listening, dict) and "host" in listening):
            tail = text.decode(errors="replace") + said.read_text(errors="replace")[-2000:]
            raise BackendError(f"`moh-deploy serve` did not start: {tail}")
        return str(listening["host"]), int(listening["port"])

    @property
    def name(self) -> str:
        return "`moh-deploy serve` over HTTP"

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self._host}:{self._port}"

    def connect(self) -> Asking:
        return V2Client(self._host, self._port, DRILLED_NAME, self._manifest)

    def kill_worker(self) -> bool:
        return _kill(_children(self._process.pid))

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Triton(Target):
    """A bundle in tritonserver, on free ports of this machine.

    Args:
        model: What is served.
        policy: Of the guard.
        server: The installation.
        folder: Where bundle and log are.

    Raises:
        BackendError: It did not start.
    """

    def __init__(self, model: Deployed, policy: Path, server: TritonServer, folder: Path) -> None:
        bundle = folder / "bundle"
        settings = ServingSettings(DRILLED_NAME, sample_every=0, drill=True, max_delay_ms=0.0)
        write_bundle(model, bundle, replace(settings, guard=True, policy=str(policy)))
        self.control = bundle / GUARD / CONTROL_NAME
        self.audit_log = bundle / GUARD / AUDIT_NAME
        self._manifest = model.manifest
        self._stack = ExitStack()
        self._running = self._stack.enter_context(
            running_server(server, bundle, folder / "server.log", is_supervised=True)
        )

    @property
    def name(self) -> str:
        return "tritonserver, Python backend, below the bundle's supervise.py"

    def connect(self) -> Asking:
        return V2Client("127.0.0.1", self._running.ports.http, DRILLED_NAME, self._manifest)

    def kill_worker(self) -> bool:
        # The children of the server, which is one itself, are the stubs, which run the models.
        servers = _children(self._running.process.pid)
        return _kill([stub for server in servers for stub in _children(server)])

    def close(self) -> None:
        self._stack.close()


class ServerAt(Target):
    """A server that runs already, with a drill allowed, on whatever machine; its files are here.

    Args:
        url: Where it answers by the Open Inference Protocol v2: `http://HOST:PORT`.
        model: What it calls the model.
        manifest: Of the package that it serves.
        control: Its control file.
        audit_log: What its guard appends to.

    Raises:
        ConfigError: The address is of another form.
    """

    def __init__(
        self, url: str, model: str, manifest: ModelInterface, control: Path, audit_log: Path
    ) -> None:
        other = f"url is '{url}', expected http://HOST:PORT."
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # of a port, or of brackets
            raise ConfigError(other) from None
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise ConfigError(other)
        self.control, self.audit_log = control, audit_log
        self._url, self._host, self._port = url, parts.hostname, port or 80
        self._model, self._manifest = model, manifest

    @property
    def name(self) -> str:
        return f"the server at {self._url}"

    def connect(self) -> Asking:
        return V2Client(self._host, self._port, self._model, self._manifest)


DRILLED_NAME = "drilled"
"""What servers that a drill starts call the model."""
_STOP_S = 60.0


def _children(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold blanks: state, parent.
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


def _kill(processes: Sequence[int]) -> bool:
    for one in processes:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return bool(processes)


def drilled(settings: ServingSettings, folder: Path) -> ServingSettings:
    """Return settings with a guard that a drill may break, by files in a folder."""
    return replace(
        settings,
        guard=True,
        drill=True,
        control=str(folder / "control.json"),
        audit_log=str(folder / "audit.jsonl"),
        otlp=None,  # a rehearsal is not the service that a collector watches
    )

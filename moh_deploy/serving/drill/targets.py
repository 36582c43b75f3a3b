"""The servers that a drill breaks: in this process, over HTTP, or one that runs already."""

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Self

from moh_deploy.errors import BackendError
from moh_deploy.runtime.base import Deployed, ModelInterface
from moh_deploy.serving.drill.load import Ask, ServerAnswer, V2Client, host_and_port
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle import AUDIT_NAME, CONTROL_NAME, GUARD, write_bundle
from moh_deploy.serving.triton.server import TritonServer, running_server
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.isolate import child_environment
from moh_deploy.system.npz import Array

# The model's name on servers that a drill starts.
DRILLED_NAME = "drilled"
_STOP_S = 60.0


class Target(ABC):
    """A server that was started with a drill allowed.

    Attributes:
        name: Its name in reports.
        control: Its control file.
        audit_log: The file that its guard appends transitions to.
    """

    def __init__(self, name: str, control: Path, audit_log: Path) -> None:
        self.name, self.control, self.audit_log = name, control, audit_log
        self.resources = ExitStack()

    @abstractmethod
    def connect(self) -> Ask:
        """Return a connection for one client."""

    def kill_worker(self) -> bool:
        """End the process that answers, as `kill -9` does; False if that cannot be done."""
        return False

    def close(self) -> None:
        """Close connections, and end a server that the drill has started."""
        self.resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class InProcess(Target):
    """The served model itself, called by threads of this process; its files are in a folder."""

    def __init__(self, model: Deployed, settings: ServingSettings, folder: Path) -> None:
        control, audit_log = folder / "control.json", folder / "audit.jsonl"
        super().__init__("the served model in this process", control, audit_log)
        # A rehearsal is not the service that a collector watches.
        settings = replace(settings, guard=True, drill=True, otlp=None)
        settings = replace(settings, control=str(control), audit_log=str(audit_log))
        self._served = open_served(model, settings)
        self.resources.callback(self._served.close)

    def connect(self) -> Ask:
        return self._answer

    def _answer(self, inputs: Mapping[str, Array]) -> ServerAnswer:
        reply = self._served.answer(inputs)
        return ServerAnswer(reply.outputs, reply.rung)


class ServerAt(Target):
    """A server that runs already, with a drill allowed, on any machine; its files are here.

    Args:
        url: Its address, by the Open Inference Protocol v2: `http://HOST:PORT`.

    Raises:
        ConfigError: The address is of another form.
    """

    def __init__(
        self, url: str, model: str, manifest: ModelInterface, control: Path, audit_log: Path
    ) -> None:
        super().__init__(f"the server at {url}", control, audit_log)
        self.url = url
        self._host, self._port = host_and_port(url)
        self._model, self._manifest = model, manifest

    def connect(self) -> Ask:
        client = V2Client(self._host, self._port, self._model, self._manifest)
        self.resources.callback(client.close)
        return client


class HttpServer(ServerAt):
    """`moh-deploy serve` in a process of its own, on a free port; its files are in a folder.

    Raises:
        BackendError: It did not start.
    """

    def __init__(self, model: Deployed, policy: Path, folder: Path) -> None:
        control, audit_log = folder / "control.json", folder / "audit.jsonl"
        command = [sys.executable, "-m", "moh_deploy", "serve", str(model.root), "--port", "0"]
        command += ["--name", DRILLED_NAME, "--guard", str(policy), "--drill", "--json"]
        command += ["--control", str(control), "--audit-log", str(audit_log)]
        with ExitStack() as stack:
            with (folder / "server.log").open("wb") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=child_environment(),
                    # Ctrl-C is the drill's: asked to end twice, the server would kill its worker.
                    start_new_session=True,
                )
            stack.callback(self._end)
            url = self._listening(folder / "server.log")
            super().__init__(url, DRILLED_NAME, model.manifest, control, audit_log)
            self.name = "`moh-deploy serve` over HTTP"
            self.resources.push(stack.pop_all())

    def _listening(self, log: Path) -> str:
        """Wait until the server listens, and return its address."""
        assert self.process.stdout is not None
        # One JSON object over several lines: the address, or an error.
        text = b"".join(takewhile(lambda line: line != b"}\n", self.process.stdout))
        found = parse_json(text + b"}" if text else b"{}", "the server", error=BackendError)
        if not (isinstance(found, dict) and "host" in found):
            tail = text.decode(errors="replace") + log.read_text(errors="replace")[-2000:]
            raise BackendError(f"`moh-deploy serve` did not start: {tail}")
        return f"http://{found['host']}:{found['port']}"

    def kill_worker(self) -> bool:
        return _kill(_children(self.process.pid))

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.communicate()


class Triton(ServerAt):
    """A bundle in tritonserver, on free ports; its files are in a folder.

    Raises:
        BackendError: It did not start.
    """

    def __init__(self, model: Deployed, policy: Path, server: TritonServer, folder: Path) -> None:
        bundle = folder / "bundle"
        settings = ServingSettings(DRILLED_NAME, sample_every=0, drill=True, max_delay_ms=0.0)
        write_bundle(model, bundle, replace(settings, guard=True, policy=str(policy)))
        with ExitStack() as stack:
            log = folder / "server.log"
            running = running_server(server, bundle, log, is_supervised=True)
            self._running = stack.enter_context(running)
            control, audit_log = bundle / GUARD / CONTROL_NAME, bundle / GUARD / AUDIT_NAME
            url = f"http://127.0.0.1:{self._running.ports.http}"
            super().__init__(url, DRILLED_NAME, model.manifest, control, audit_log)
            self.name = "tritonserver, Python backend, below the bundle's supervise.py"
            self.resources.push(stack.pop_all())

    def kill_worker(self) -> bool:
        # Below supervise.py is the server; its children are the stubs, which run the models.
        return _kill(_children(*_children(self._running.process.pid)))


def _children(*parents: int) -> list[int]:
    """Return the processes that these processes have started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            # After the name, which may hold blanks: state, parent.
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) in parents:
                found.append(int(status.parent.name))
    return found


def _kill(processes: list[int]) -> bool:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return bool(processes)

"""The servers that a drill breaks: in this process, over HTTP, or one that runs already."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote, urlsplit

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.runtime.base import Deployed, ModelInterface
from moh_deploy.serving.batches import scalars_of
from moh_deploy.serving.http import protocol
from moh_deploy.serving.http.queue import Refusal
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle import AUDIT_NAME, CONTROL_NAME, GUARD, write_bundle
from moh_deploy.serving.triton.server import TritonServer, running_server
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.isolate import child_environment
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.compare.tolerances import Tolerance

# The model's name on servers that a drill starts.
DRILLED_NAME = "drilled"
_STOP_S = 60.0


@dataclass(frozen=True)
class ServerAnswer:
    """An answer of a server; `rung` is empty where the server does not name the fallback level."""

    outputs: Mapping[str, Array]
    rung: str


# A connection to a server, of one thread. It raises MoHDeployError where a request fails.
Ask = Callable[[Mapping[str, Array]], ServerAnswer]


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


# Send requests from several threads, and compare every answer with the package's own runs.

_TIMEOUT_S = 15.0


class V2Client:
    """A connection to a model on a server, of one thread; it connects again after an error."""

    def __init__(self, host: str, port: int, model: str, manifest: ModelInterface) -> None:
        self._address = host, port
        self._path = f"/v2/models/{quote(model)}/infer"
        self._outputs = [
            protocol.RequestedOutput(info.name, is_binary=True) for info in manifest.outputs
        ]
        self._scalars = scalars_of(manifest)
        self._connection: http.client.HTTPConnection | None = None

    def __call__(self, inputs: Mapping[str, Array]) -> ServerAnswer:
        """Ask, and wait for the answer.

        Raises:
            BackendError: There is no answer: no connection, or a status of 400 or above.
        """
        # Triton takes a number for each sample as [batch, 1] alone, `serve` takes it, too.
        sent = {
            name: array[..., None] if name in self._scalars else array
            for name, array in inputs.items()
        }
        body = protocol.write_request(sent, outputs=self._outputs)
        try:
            if self._connection is None:
                address = self._address
                self._connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT_S)
            connection = self._connection
            connection.request("POST", self._path, body.content, body.headers)
            response = connection.getresponse()
            content, json_bytes = response.read(), response.getheader(protocol.HEADER_LENGTH)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise BackendError(f"no answer: {type(error).__name__} {error}") from error
        if response.status >= 400:
            text = content[:300].decode(errors="replace")
            raise BackendError(f"status {response.status}: {text}")
        try:
            outputs, parameters = protocol.read_reply(content, json_bytes, self._scalars)
        except Refusal as error:
            raise BackendError(
                f"the server's answer is not of the v2 protocol with binary tensors: {error}",
                hint="Name a server of `moh-deploy serve`, or Triton.",
            ) from error
        return ServerAnswer(outputs, str(parameters.get("moh_rung", "")))

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


# After a request that failed: a server that starts again is not to be flooded.
_PAUSE_S = 0.02


@dataclass(frozen=True)
class LoadCase:
    """A request, and the right outputs of each fallback level, a set for each way to run it."""

    inputs: Mapping[str, Array]
    right: Mapping[str, tuple[Mapping[str, Array], ...]]

    def is_right(self, answer: ServerAnswer, rule: Tolerance) -> bool:
        """Compare an answer by the rule of its outputs' dtypes and of the model's precision."""
        every = tuple(outputs for allowed in self.right.values() for outputs in allowed)

        def is_equal(name: str, expected: Array) -> bool:
            tolerance = BUILT_IN_POLICY.output_rule(expected.dtype.name, rule)
            found = compare_output(name, "", answer.outputs.get(name), expected, tolerance)
            return found.reason is None

        return any(
            all(is_equal(name, expected) for name, expected in outputs.items())
            for outputs in self.right.get(answer.rung) or every
        )


@dataclass(frozen=True)
class Asked:
    """A request that has ended; times are seconds since 1970."""

    begun: float
    ended: float
    outcome: Literal["right", "wrong", "failed"]
    rung: str = ""  # the fallback level that answered
    error: str = ""


class Load:
    """Clients that send one request after the other, each on a thread, until it is closed.

    Args:
        connections: One for each client.
        cases: Their requests, in turns.
    """

    def __init__(
        self, connections: Sequence[Ask], cases: Sequence[LoadCase], rule: Tolerance
    ) -> None:
        self.clients = len(connections)
        self._cases = tuple(cases)
        self._rule = rule
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._asked: list[Asked] = []
        self._threads = [
            threading.Thread(target=self._client, args=(ask, first), daemon=True)
            for first, ask in enumerate(connections)
        ]
        for thread in self._threads:
            thread.start()

    def take(self) -> list[Asked]:
        """Return the requests that ended since the last call."""
        with self._lock:
            found, self._asked = self._asked, []
        return found

    def close(self, timeout_s: float = 30.0) -> None:
        """Let every client finish its request, and end."""
        self._ends.set()
        for thread in self._threads:
            thread.join(timeout_s)

    def _client(self, ask: Ask, number: int) -> None:
        while not self._ends.is_set():
            asked = self._ask(ask, self._cases[number % len(self._cases)])
            with self._lock:
                self._asked.append(asked)
            number += 1
            if asked.outcome == "failed":
                self._ends.wait(_PAUSE_S)

    def _ask(self, ask: Ask, case: LoadCase) -> Asked:
        begun = time.time()
        try:
            answer = ask(case.inputs)
        except MoHDeployError as error:
            return Asked(begun, time.time(), "failed", error=error.message)
        ended = time.time()
        is_right = case.is_right(answer, self._rule)
        return Asked(begun, ended, "right" if is_right else "wrong", answer.rung)


def host_and_port(url: str) -> tuple[str, int]:
    """Return the two parts of a URL.

    Raises:
        ConfigError: It is of another form.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme != "http" or host is None or port is None or parts.path not in ("", "/"):
        raise ConfigError(f"url is '{url}', expected http://HOST:PORT.")
    return host, port

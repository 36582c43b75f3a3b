"""Serve a model over HTTP: a worker answers, and this process starts it again when it dies.

This process holds the socket that clients connect to, so they wait in its backlog until the next
worker is there. It loads no model and reads no request: nothing that a client sends can end it.
"""

from __future__ import annotations

import math
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.serving.http.app import OUT_OF_MEMORY
from moh_deploy.serving.http.refusal import Refusal
from moh_deploy.serving.http.worker import HUNG, UNANSWERED, FirstWord, WorkerTask
from moh_deploy.serving.served_model import threads_of
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.system.isolate import child_environment, how_it_ended

_WORKER = "moh_deploy.serving.http.worker"
_BACKLOG = 1024

_HEALTHY_S = 10.0
"""A worker that has lived as long is followed by the next at once; else there is a pause, which
doubles each time."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_MOST_FAILED_STARTS = 5
_KILLED_AFTER_S = 5.0
"""How much later than it should have ended a worker is killed."""
STUCK_S = 5.0
"""A worker whose event loop says nothing for so long is killed: it says something every second, and
no request keeps it from that for as long."""


@dataclass(frozen=True)
class Listening:
    """Where clients can connect, and to what.

    Attributes:
        host: The address.
        port: Its port.
        model: What clients call the model.
        instances: How many batches run at the same time.
        threads: Threads of each.
        worker: The process that answers.
        alone_because: Why requests are not joined into batches; None if they are.
    """

    host: str
    port: int
    model: str
    instances: int
    threads: int
    worker: int
    alone_because: str | None

    @property
    def url(self) -> str:
        """The address as clients have it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {"url": self.url, **asdict(self)}

    def to_text(self) -> str:
        """Return it for people."""
        joined = (
            "Requests are joined into batches."
            if self.alone_because is None
            else f"Requests run one by one: {self.alone_because}."
        )
        return (
            f"Serving '{self.model}' at {self.url}, {self.instances} x {self.threads} threads."
            f" {joined}\n"
            f"Try it: curl {self.url}/v2/models/{self.model}"
        )


def serve_forever(
    task: WorkerTask,
    *,
    host: str,
    port: int,
    on_ready: Callable[[Listening], None],
    log: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or an interrupt; then answer what has arrived.

    Args:
        task: What workers are to do; its sockets are replaced.
        host: Address to listen at.
        port: Port; 0 for any that is free.
        on_ready: Is told, once, that requests are answered.
        log: Is told what happens to workers, a line each.

    Raises:
        ConfigError: Nobody can listen there.
        MoHDeployError: What stopped the first worker: a package that cannot be read, say.
        BackendError: No worker starts any more, or requests were not answered in time at the end.
    """
    with _listener(host, port) as listener, _Stop().at_signals() as stop:
        address, lives = listener.getsockname(), _Lives(log)
        while True:
            worker = _Worker(replace(task, restarts=lives.restarts), listener)
            stop.asks(worker)
            word = worker.word()
            if word is not None and word.error is None:
                lives.begins(worker)
                if lives.restarts == 0:
                    on_ready(_listening(address, task.settings, worker, word))
            worker.wait_until_it_ends(stop)
            if stop.is_asked:
                # Whoever connects now is refused by the system, and can go elsewhere.
                listener.close()
                worker.kill_if_it_lives(stop.asked + task.limits.shutdown_timeout_s)
                worker.check_end(task.limits.shutdown_timeout_s)
                return
            worker.close()
            if stop.wait(lives.ends(worker, word)):
                return


def _listening(
    address: Sequence[Any], settings: ServingSettings, worker: _Worker, word: FirstWord
) -> Listening:
    return Listening(
        host=address[0],
        port=address[1],
        model=settings.name,
        instances=settings.instances,
        threads=threads_of(settings),
        worker=worker.process.pid,
        alone_because=word.alone_because,
    )


class _Lives:
    """The lives of workers, one after the other: when the next one may begin.

    Attributes:
        restarts: How many have ended.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.restarts = 0
        self._log = log
        self._failed_starts = 0
        self._pause_s = 0.0
        self._answers_since: float | None = None
        self._died = 0.0

    def begins(self, worker: _Worker) -> None:
        """Note that a worker answers."""
        self._failed_starts, self._answers_since = 0, time.monotonic()
        if self.restarts:
            later_s = self._answers_since - self._died
            self._log(f"worker {worker.process.pid} answers, {later_s:.1f} s later")

    def ends(self, worker: _Worker, word: FirstWord | None) -> float:
        """Note that a worker has ended by itself, and return how long to wait for the next.

        Raises:
            MoHDeployError: It was the first, or one of too many, that did not start.
        """
        since, self._died, self._answers_since = self._answers_since, time.monotonic(), None
        if since is None:
            self._failed_starts += 1
            if self.restarts == 0 or self._failed_starts == _MOST_FAILED_STARTS:
                raise worker.error(word)
            self._log(f"worker {worker.process.pid} did not start: {worker.error(word)}")
        is_healthy = since is not None and self._died - since > _HEALTHY_S
        longer_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._pause_s = 0.0 if is_healthy else longer_s
        self.restarts += 1
        self._log(
            f"worker {worker.process.pid} ended with {worker.how()}; the next starts"
            f" in {self._pause_s:g} s (restart {self.restarts})"
        )
        return self._pause_s


class _Worker:
    """A worker's process, and the socket to it."""

    def __init__(self, task: WorkerTask, listener: socket.socket) -> None:
        self._socket, other = socket.socketpair()
        self._said = b""
        self._heard = math.inf  # until its first word: to load a model may take minutes
        self._is_stuck = False
        with other:
            numbers = listener.fileno(), other.fileno()
            given = replace(task, listener=numbers[0], parent=numbers[1])
            self.process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, given.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__,  # it has nothing to say there
                pass_fds=numbers,
                env=child_environment(),
            )

    def word(self) -> FirstWord | None:
        """Wait for what the worker says; None if it ends without a word."""
        while not self._said.endswith(b"\n"):
            received = self._socket.recv(4096)
            if not received:
                return None
            self._said += received
        self._heard = time.monotonic()
        return FirstWord.of_line(self._said)

    def wait_until_it_ends(self, stop: _Stop) -> None:
        """Wait for the worker to end, or to be asked to; kill it where its event loop stands."""
        while not stop.is_asked and not self._has_ended(stop.wake):
            if time.monotonic() > self._heard + STUCK_S:
                self._is_stuck = True
                self.process.kill()

    def kill_if_it_lives(self, deadline: float) -> None:
        """Wait for the worker, which was asked to end; kill it where it does not in time."""
        while not self._has_ended():
            if time.monotonic() > deadline + _KILLED_AFTER_S:
                self.process.kill()

    def _has_ended(self, *others: socket.socket) -> bool:
        """Wait a second, or for one of the other sockets; return whether the worker has ended."""
        # Its end of the socket is closed with it, however it ends.
        if self._socket not in select.select([self._socket, *others], [], [], 1.0)[0]:
            return False
        if self._socket.recv(4096):
            self._heard = time.monotonic()
            return False
        self.process.wait()
        return True

    def check_end(self, timeout_s: float) -> None:
        """Raise if a worker that was asked to end has not answered all requests before."""
        # Asked before it could listen to that, it dies of the signal, and has no requests.
        if self.process.returncode in (0, -signal.SIGTERM):
            return
        if self.process.returncode == UNANSWERED:
            raise BackendError(f"not all requests were answered within {timeout_s:g} s at the end.")
        raise BackendError(f"the worker ended with {self.how()}: requests may be unanswered.")

    def error(self, word: FirstWord | None) -> MoHDeployError:
        """Return why the worker did not start."""
        if word is None or word.error is None:
            return BackendError(f"the worker ended with {self.how()} before it could answer.")
        known = [kind for kind in MoHDeployError.__subclasses__() if kind is not Refusal]
        kinds = {kind.exit_code: kind for kind in known}
        return kinds.get(word.exit_code, BackendError)(word.error, hint=word.hint)

    def close(self) -> None:
        """Close the socket to a worker that has ended."""
        self._socket.close()

    def how(self) -> str:
        """Say how the worker ended."""
        if self._is_stuck:
            return f"no sign of life for {STUCK_S:g} s"
        code = self.process.returncode
        known = {HUNG: "a run that hung", OUT_OF_MEMORY: "no memory left"}
        return known.get(code) or how_it_ended(code)


class _Stop:
    """Whether the server is to stop, which signals ask for.

    Attributes:
        asked: When it was asked, on the monotonic clock.
        wake: Can be read from then on.
    """

    def __init__(self) -> None:
        self.asked = 0.0
        self.wake, self._waking = socket.socketpair()
        self._event = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_asked(self) -> bool:
        """Whether the server is to stop."""
        return self._event.is_set()

    def asks(self, worker: _Worker) -> None:
        """Let this worker be asked to end from now on."""
        self._process = worker.process
        if self.is_asked:  # between the last look and here
            worker.process.terminate()

    def wait(self, seconds: float) -> bool:
        """Wait, and return whether the server is to stop."""
        return self._event.wait(seconds)

    @contextmanager
    def at_signals(self) -> Iterator[_Stop]:
        """Stop when the process is interrupted or terminated within the block."""
        numbers = signal.SIGINT, signal.SIGTERM
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.wake.close()
            self._waking.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        process, is_second = self._process, self.is_asked
        self.asked = self.asked or time.monotonic()
        self._event.set()
        self._waking.send(b".")
        if process is not None and process.returncode is None:
            process.kill() if is_second else process.terminate()


def _listener(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ConfigError(f"port is {port}, expected 0 to {2**16 - 1}.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter: of a name that cannot be one
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"nobody can listen at {host}, port {port}: {why}.",
            hint="Another server may be there: --port 0 takes any port that is free.",
        ) from error

"""Serve a model over HTTP: a worker answers, and this process starts it again when it dies.

This process holds the socket that clients connect to, so they wait in its backlog until the next
worker is there. It loads no model and reads no request: nothing that a client sends can end it.
"""

import math
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.serving.http.app import OUT_OF_MEMORY
from moh_deploy.serving.http.queue import Refusal
from moh_deploy.serving.http.worker import (
    HUNG,
    TASK_JSON,
    UNANSWERED,
    WORD_JSON,
    FirstWord,
    WorkerTask,
)
from moh_deploy.serving.served_model import threads_of
from moh_deploy.system.isolate import child_environment, how_it_ended

_WORKER = "moh_deploy.serving.http.worker"
_BACKLOG = 1024

# A worker that has lived as long is followed by the next at once; else there is a pause, which
# doubles each time.
_HEALTHY_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_MOST_FAILED_STARTS = 5
# How much later than it should have ended a worker is killed.
_KILLED_AFTER_S = 5.0
# A worker whose event loop says nothing for so long is killed: it says something every second, and
# no request keeps it from that for as long.
STUCK_S = 5.0


@dataclass(frozen=True)
class Listening:
    """Where clients can connect, and to what."""

    host: str
    port: int
    model: str  # the model's name, as clients have it
    instances: int  # how many batches run at the same time
    threads: int  # threads of each
    worker: int  # the process that answers
    alone_because: str | None  # why requests are not joined into batches; None if they are

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
        task: The task of each worker; its sockets are replaced.
        on_ready: Called once, when requests are answered.
        log: Takes lines about the ends and starts of workers.

    Raises:
        ConfigError: The address cannot be listened at.
        MoHDeployError: The first worker's own error: a package that cannot be read, say.
        BackendError: No worker starts any more, or requests were not answered in time at the end.
    """
    restarts, failed_starts, pause_s, died = 0, 0, 0.0, 0.0
    with _listener(host, port) as listener, _signals() as wake:
        while True:
            worker = _Worker(replace(task, restarts=restarts), listener)
            began = None
            while not worker.has_ended:
                if worker.wait(wake):
                    # The system refuses new connections, which can go elsewhere.
                    listener.close()
                    worker.end(wake, task.limits.shutdown_timeout_s)
                    return
                worker.kill_if_stuck()
                if began is None and worker.is_ready:
                    began, failed_starts = time.monotonic(), 0
                    if restarts:
                        log(f"worker {worker.pid} answers, {began - died:.1f} s later")
                    else:
                        host, port, *_ = listener.getsockname()
                        settings, alone = task.settings, worker.word().alone_because
                        of_model = settings.name, settings.instances, threads_of(settings)
                        on_ready(Listening(host, port, *of_model, worker.pid, alone))
            died = time.monotonic()
            if began is None:
                failed_starts += 1
                if restarts == 0 or failed_starts == _MOST_FAILED_STARTS:
                    raise worker.error()
                log(f"worker {worker.pid} did not start: {worker.error()}")
            restarts += 1
            is_healthy = began is not None and died - began > _HEALTHY_S
            longer_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            pause_s = 0.0 if is_healthy else longer_s
            log(
                f"worker {worker.pid} ended with {worker.how()}; the next starts"
                f" in {pause_s:g} s (restart {restarts})"
            )
            if select.select([wake], [], [], pause_s)[0]:
                return


class _Worker:
    """A worker's process, and the socket to it."""

    def __init__(self, task: WorkerTask, listener: socket.socket) -> None:
        self._socket, other = socket.socketpair()
        self._received = b""
        self._heard = math.inf  # until its first word: to load a model may take minutes
        self._is_stuck = False
        self.has_ended = False
        with other:
            numbers = listener.fileno(), other.fileno()
            given = replace(task, listener=numbers[0], parent=numbers[1])
            self._process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, TASK_JSON.dump_json(given)],
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__,  # it prints no results
                pass_fds=numbers,
                env=child_environment(),
            )
        self.pid = self._process.pid

    def wait(self, wake: socket.socket) -> bool:
        """Wait a second, or for the worker or a signal; return whether a signal came."""
        ready, _, _ = select.select([self._socket, wake], [], [], 1.0)
        if self._socket in ready:
            received = self._socket.recv(4096)
            if b"\n" not in self._received:
                self._received += received
            if received and b"\n" in self._received:
                self._heard = time.monotonic()
            if not received:  # its end is closed with the process, however that ends
                self._process.wait()
                self._socket.close()
                self.has_ended = True
        return wake in ready

    def kill_if_stuck(self) -> None:
        """Kill a worker whose event loop stands still."""
        if time.monotonic() > self._heard + STUCK_S:
            self._is_stuck = True
            self._process.kill()

    def end(self, wake: socket.socket, timeout_s: float) -> None:
        """Let the worker answer its requests and end; a second signal kills it.

        Raises:
            BackendError: It has not answered all of them.
        """
        wake.recv(1)
        self._process.terminate()
        deadline = time.monotonic() + timeout_s + _KILLED_AFTER_S
        while not self.has_ended:
            if self.wait(wake) or time.monotonic() > deadline:
                self._process.kill()
        code = self._process.returncode
        if code == UNANSWERED:
            raise BackendError(f"not all requests were answered within {timeout_s:g} s at the end.")
        # A worker that was asked before it could listen to that dies of the signal.
        if code not in (0, -signal.SIGTERM):
            raise BackendError(f"the worker ended with {self.how()}: requests may be unanswered.")

    @property
    def is_ready(self) -> bool:
        """Tell whether it has said that it answers."""
        return b"\n" in self._received and self.word().error is None

    def word(self) -> FirstWord:
        """Return the first that it has said; an error where it said nothing."""
        line, has_line, _ = self._received.partition(b"\n")
        if has_line:
            return WORD_JSON.validate_json(line)
        return FirstWord(f"the worker ended with {self.how()} before it could answer.")

    def error(self) -> MoHDeployError:
        """Return why the worker did not start."""
        word = self.word()
        known = [kind for kind in MoHDeployError.__subclasses__() if kind is not Refusal]
        kinds = {kind.exit_code: kind for kind in known}
        return kinds.get(word.exit_code, BackendError)(word.error or "", hint=word.hint)

    def how(self) -> str:
        """Say how the worker ended."""
        if self._is_stuck:
            return f"no sign of life for {STUCK_S:g} s"
        code = self._process.returncode
        known = {HUNG: "a run that hung", OUT_OF_MEMORY: "no memory left"}
        return known.get(code) or how_it_ended(code)


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Yield a socket that can be read once the process is interrupted or terminated."""
    wake, waking = socket.socketpair()
    waking.setblocking(False)
    numbers = signal.SIGINT, signal.SIGTERM
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    descriptor = signal.set_wakeup_fd(waking.fileno())
    try:
        with wake, waking:
            yield wake
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)


def _listener(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ConfigError(f"port is {port}, expected 0 to {2**16 - 1}.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter: of a name that cannot be one
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {why}.",
            hint="Another server may be there: --port 0 takes any port that is free.",
        ) from error

"""The process that answers requests: it opens the model, and serves on a socket from its parent."""

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn
from pydantic import TypeAdapter

from moh_deploy.config.dims import DimExpr
from moh_deploy.config.strict_json import Strict
from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.runtime.base import ModelInterface
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.http.app import Endpoint, make_app
from moh_deploy.serving.http.connection import TimedConnection, in_pieces
from moh_deploy.serving.http.queue import BatchingQueue, HttpLimits
from moh_deploy.serving.served_model import find_joining, open_served, threads_of
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.system.suggest import did_you_mean

UNANSWERED = 75  # EX_TEMPFAIL of sysexits.h: requests were cut off at the end
HEARTBEAT = b"\n"  # ends the first word, too
HUNG = 69  # EX_UNAVAILABLE: a run did not end, and the process has to
# A run that lasts so many times as long as clients wait is ended, with the process.
HUNG_TIMES = 2
_KEEP_ALIVE_S = 30
_FILES = 4096


@dataclass(frozen=True)
class WorkerTask(Strict):
    """The task of a worker process: the model, and how it is served."""

    model: str  # the package or engine
    settings: ServingSettings  # how it is served
    limits: HttpLimits  # sizes, times and numbers of requests
    listener: int  # number of the open socket that clients connect to
    # Number of the open socket to the process that started it: it says there that it is ready, and
    # ends when the other end is closed.
    parent: int
    restarts: int = 0  # how many workers have died before it


# Writes a task as the argument of a process, and reads it.
TASK_JSON = TypeAdapter(WorkerTask)


def work(task: WorkerTask, parent: socket.socket) -> int:
    """Serve until SIGTERM, until the parent is gone, or until a run hangs.

    Returns:
        The exit code: 0 if all requests that have arrived are answered, else why not.

    Raises:
        BackendError: The model cannot be run here.
        ConfigError: A limit is of an unknown dimension.
        PackageError: It cannot be read.
        ValidationError: It answers a recorded run wrongly.
    """
    settings, limits = task.settings, task.limits
    model = find_deployed(Path(task.model))
    settings_here = replace(settings, threads=session_threads(settings))
    served = open_served(model, settings_here, is_restart=task.restarts > 0)
    _check_dims(limits.longest, model.manifest)
    samples = served.batch_axis
    if samples is not None:  # A request of more of them would hold up all others.
        limits = replace(limits, longest={samples.dim: settings.max_batch, **limits.longest})
    axis, alone_because = find_joining(served)
    queue = BatchingQueue(
        served.answer,
        axis,
        instances=settings.instances,
        max_batch=settings.max_batch,
        max_delay_s=settings.max_delay_ms / 1e3,
        max_waiting=limits.max_waiting,
        hung_s=limits.request_timeout_s,  # no client waits longer
    )
    endpoint = Endpoint(settings.name, settings.version, served, queue, limits, task.restarts)
    TimedConnection.limit_s = limits.read_timeout_s
    config = uvicorn.Config(
        in_pieces(make_app(endpoint)),
        http=TimedConnection,
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(limits.shutdown_timeout_s)),
    )
    gc.freeze()  # the collector skips all that is loaded
    server = _Server(config, queue, parent, FirstWord(alone_because=alone_because))
    asyncio.run(server.serve([socket.socket(fileno=task.listener)]))
    code = _code_at_end(server, queue, limits.shutdown_timeout_s)
    # Nothing is closed that is still in use.
    if code == 0:
        served.close()
    return code


@dataclass(frozen=True)
class FirstWord(Strict):
    """The first message of a worker to its parent: it is ready, or why it will not be."""

    error: str | None = None  # the reason why it does not start; None if it is ready
    hint: str | None = None  # the next step for the user
    exit_code: int = 0
    alone_because: str | None = None  # why requests are not joined; None if they are


class _Server(uvicorn.Server):
    """A server whose parent says when it ends; it ends by itself where a run hangs.

    Nothing can stop a run but the end of its process. The parent starts the next one.
    """

    def __init__(
        self, config: uvicorn.Config, queue: BatchingQueue, parent: socket.socket, ready: FirstWord
    ) -> None:
        super().__init__(config)
        self._queue = queue
        self._parent = parent
        self._ready = ready
        self.has_cut_off = self.has_hung = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End in order at SIGTERM; an interrupt goes to the parent, too, which passes it on."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._parent.setblocking(False)
        # It never says anything: what can be read is that it is gone.
        asyncio.get_running_loop().add_reader(self._parent.fileno(), self._orphaned)
        self._parent.send(WORD_JSON.dump_json(self._ready) + HEARTBEAT)
        self._living = asyncio.create_task(self._live())  # to the end: shutdown may take long

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        limit_s = self.config.timeout_graceful_shutdown or 0
        began = time.monotonic()
        await super().shutdown(sockets)
        self.has_cut_off = time.monotonic() - began > limit_s

    async def _live(self) -> None:
        """Tell the parent that the event loop runs, and end where a run hangs."""
        runs = self._queue.runs
        while True:
            with suppress(OSError):  # the parent may be gone, or stopped and not reading
                self._parent.send(HEARTBEAT)
            if runs.hung(HUNG_TIMES) and not self.has_hung:
                limit = f"{HUNG_TIMES * runs.hung_s:g} s"
                print(
                    f"error: a run has not ended within {limit}: this worker ends.",
                    file=sys.stderr,
                    flush=True,
                )
                self.has_hung = True
                # Other instances answer what has arrived before.
                if runs.are_all_hung:
                    self._queue.refuse_waiting()
                self._end()
            await asyncio.sleep(min(1.0, runs.hung_s / 4))

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self._parent.fileno())
        self._end()

    def _end(self) -> None:
        self.should_exit = True
        self._queue.hurry()


def _code_at_end(server: _Server, queue: BatchingQueue, timeout_s: float) -> int:
    """Wait for what is still answered, and return the exit code."""
    if server.has_hung:
        return HUNG
    # The time to wait is over where requests were cut off: the parent ends who takes more.
    is_answered = not server.has_cut_off and queue.close(timeout_s=timeout_s)
    return 0 if is_answered else UNANSWERED


def session_threads(settings: ServingSettings) -> int:
    """Return the threads of the one session that all instances run.

    ONNX Runtime counts the thread that calls among them: of N instances N threads call, and share
    the others.
    """
    return settings.instances * (threads_of(settings) - 1) + 1


def _check_dims(longest: Mapping[str, int], manifest: ModelInterface) -> None:
    if not longest:
        return
    shapes = [size for info in manifest.inputs for size in info.shape if isinstance(size, str)]
    dims = list(dict.fromkeys(DimExpr.of_input(shape).name for shape in shapes))
    for name in longest:
        if name not in dims:
            known = ", ".join(f"'{dim}'" for dim in dims) or "none"
            raise ConfigError(
                f"longest is of '{name}', but the dynamic dimensions are {known}.",
                hint=did_you_mean(name, dims) or None,
            )


# Writes a first word, which is one line, and reads it.
WORD_JSON = TypeAdapter(FirstWord)


def main(argument: str) -> int:
    """Do the task in an argument, and return the exit code."""
    # Ctrl-C reaches this process, too: it is the parent that answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Connections may be many for a moment, before some are closed.
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < _FILES <= most_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, most_files))
    task = TASK_JSON.validate_json(argument)
    parent = socket.socket(fileno=task.parent)
    try:
        return work(task, parent)
    except MoHDeployError as error:
        with suppress(OSError):  # the parent, whose error it becomes, may be gone
            word = FirstWord(error.message, error.hint, error.exit_code)
            parent.send(WORD_JSON.dump_json(word) + HEARTBEAT)
        return error.exit_code


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stderr.flush()
    # Threads of a run that hangs would be waited for.
    os._exit(code)

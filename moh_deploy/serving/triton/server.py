"""Find a tritonserver on this machine, and start one for a bundle.

For tests, drills and a first look. In production the container's own command starts it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join, quote

import moh_deploy
from moh_deploy.errors import BackendError
from moh_deploy.serving.triton.bundle_json import REPOSITORY

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_EXECUTABLE = "tritonserver"
_STUB = "triton_python_backend_stub"
_USUAL_PLACE = Path("/opt/tritonserver")
# A large model takes minutes to load; a server that ends is noticed at once.
_START_SECONDS, _STOP_SECONDS = 600.0, 20.0
_LOG_TAIL_BYTES = 4000
# Whatever proxies the environment names: none is asked for this machine.
_ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass(frozen=True)
class TritonServer:
    """An installed server: its folder with `bin/` and `backends/`."""

    root: Path

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the backends that are installed with it."""
        folder = self.root / "backends"
        return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()

    @property
    def stub(self) -> Path:
        """The program in which the Python backend runs a model; it looks in no other place."""
        return self.root / "backends" / "python" / _STUB

    def packed_stub(self, python: str) -> Path:
        """The place of the stub for a version of Python (`3.11`) in the server's wheel."""
        return self.root / "python_backend_stubs" / python / _STUB

    def start_command(self, bundle: Path, option: str | None = None) -> str:
        """Return the line for a shell that serves a bundle by this Python's moh-deploy.

        Triton takes the packages of the `python3` that is first on PATH, and ignores PYTHONPATH.
        """
        python = quote(str(Path(sys.executable).parent))
        libpython = quote(str(sysconfig.get_config_var("LIBDIR")))
        command = [
            str(self.root / "bin" / _EXECUTABLE),
            f"--model-repository={(bundle / REPOSITORY).resolve()}",
            f"--backend-directory={self.root / 'backends'}",
            *([] if option is None else [option]),
        ]
        return (
            f"PATH={python}:$PATH"
            f" LD_LIBRARY_PATH={libpython}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} {join(command)}"
        )


def python_of_stub(stub: Path) -> str | None:
    """Return the version of Python that a stub was built for, such as `3.11`, if any."""
    try:
        found = re.search(rb"libpython(\d\.\d+)\.so", stub.read_bytes())
    except OSError:
        return None
    return None if found is None else found[1].decode()


def find_server(given: Path | None = None) -> TritonServer | None:
    """Find a server: that of a folder or virtual environment, or one that is installed here.

    Args:
        given: The folder with `bin/tritonserver`, or an environment with `nvidia-pytriton`; None:
            one on PATH, in `/opt/tritonserver`, or in this Python's environment.
    """
    on_path = shutil.which(_EXECUTABLE)
    places = [given] if given is not None else [_USUAL_PLACE, Path(sys.prefix)]
    if given is None and on_path is not None:
        places.insert(0, Path(on_path).resolve().parents[1])
    for place in places:
        packed = sorted(place.glob("lib/python3*/site-packages/pytriton/tritonserver"))
        for root in (place, *packed):
            if (root / "bin" / _EXECUTABLE).is_file():
                return TritonServer(root.resolve())
    return None


@dataclass(frozen=True)
class Ports:
    """The ports of a running server, all on 127.0.0.1."""

    http: int
    grpc: int
    metrics: int

    @classmethod
    def free(cls) -> Ports:
        """Return three free ports."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for listener in sockets:
                listener.bind(("127.0.0.1", 0))
            return cls(*(listener.getsockname()[1] for listener in sockets))


@dataclass
class RunningServer:
    """A server that was started."""

    ports: Ports  # where it listens
    log: Path  # the file with its output
    # Of the server, whose models run in children of it; or of its supervisor, whose child the
    # server is then.
    process: subprocess.Popen[bytes]

    def metrics(self) -> str:
        """Return what Prometheus would get.

        Raises:
            OSError: The server does not answer.
        """
        url = f"http://127.0.0.1:{self.ports.metrics}/metrics"
        with _ask(url, timeout=10) as answer:
            return str(answer.read().decode())

    def is_ready(self) -> bool:
        """Tell whether it takes requests."""
        url = f"http://127.0.0.1:{self.ports.http}/v2/health/ready"
        try:
            with _ask(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextlib.contextmanager
def running_server(
    server: TritonServer,
    bundle: Path,
    log: Path,
    options: Sequence[str] = (),
    *,
    is_supervised: bool = False,
) -> Iterator[RunningServer]:
    """Run a server for a bundle, with this Python's moh-deploy, until the block ends.

    Args:
        options: More of its own command line.
        is_supervised: The bundle's supervise.py starts it, and starts it again; asking often.

    Raises:
        BackendError: It ends, or is not ready in time, with the end of its log.
    """
    lay_stub(server)
    ports = Ports.free()
    own = [
        "--http-address=127.0.0.1",
        f"--http-port={ports.http}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={ports.grpc}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={ports.metrics}",
        "--allow-gpu-metrics=false",
        "--exit-on-error=true",
    ]
    # The same line as people are told.
    line = f"exec env {server.start_command(bundle)} {join([*own, *options])}"
    command = ["sh", "-c", line]
    if is_supervised:
        places = [f"--port={ports.http}", f"--metrics-port={ports.metrics}", "--every=1", "--"]
        command = [sys.executable, str(bundle / "supervise.py"), *places, *command]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            # First on the path of the model's Python: it serves with the moh-deploy that runs here.
            cwd=Path(moh_deploy.__file__).resolve().parents[1],
            start_new_session=True,
        )
    running = RunningServer(ports, log, process)
    try:
        _wait_until_ready(running)
        yield running
    finally:
        _stop(process)


def lay_stub(server: TritonServer) -> None:
    """Lay the stub for this version of Python where the backend looks for it.

    Raises:
        BackendError: It is missing for this version, or cannot be copied.
    """
    packed = server.packed_stub(PYTHON)
    if python_of_stub(server.stub) == PYTHON:
        return
    if not packed.is_file():
        raise BackendError(f"{server.root} has no stub of its Python backend for Python {PYTHON}.")
    partial = server.stub.with_name(f".{_STUB}.{os.getpid()}")
    try:
        shutil.copy2(packed, partial)
        partial.replace(server.stub)
    except OSError as error:
        raise BackendError(
            f"{packed} cannot be copied to {server.stub.parent}: {error.strerror}.",
            hint=f"Copy it once, as a user who may: cp {packed} {server.stub}",
        ) from None


def _wait_until_ready(running: RunningServer) -> None:
    end = time.monotonic() + _START_SECONDS
    while not running.is_ready():
        if running.process.poll() is not None or time.monotonic() > end:
            tail = running.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
            state = "ended" if running.process.poll() is not None else "is not ready"
            raise BackendError(f"tritonserver {state}. The end of its log:\n{tail}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let it answer the requests that it has, and end it and its children in any case."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    # Stubs that outlive the server, and a server that does not end: the group is ours.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

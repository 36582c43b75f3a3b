"""Find a tritonserver on this machine, and start one for a bundle.

For tests, drills and a first look. In production the container's own command starts it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import moh_deploy
from moh_deploy.errors import BackendError
from moh_deploy.serving.triton.bundle_json import LIBRARIES, REPOSITORY

SUPERVISE_NAME = "supervise.py"
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
    """An installed server.

    Attributes:
        root: The folder with `bin/` and `backends/`.
        libraries: Folders that its own libraries are looked for in.
    """

    root: Path
    libraries: tuple[Path, ...] = ()

    @property
    def executable(self) -> Path:
        """The program."""
        return self.root / "bin" / _EXECUTABLE

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the backends that are installed with it."""
        folder = self.root / "backends"
        return tuple(sorted(one.name for one in folder.iterdir())) if folder.is_dir() else ()

    def stub(self, python: str) -> Path | None:
        """Return what runs models of this Python version (`3.11`); None where there is nothing."""
        beside = self.root / "backends" / "python" / _STUB
        packed = self.root / "python_backend_stubs" / python / _STUB
        # The wheel has one a version; the container's own is of the Python that is in it.
        return next((one for one in (packed, beside) if one.is_file()), None)


def find_server(given: Path | None = None) -> TritonServer | None:
    """Find a server: that of a folder or virtual environment, or what is installed here.

    Args:
        given: The folder with `bin/tritonserver`, or an environment with `nvidia-pytriton`; None:
            what is on PATH, in `/opt/tritonserver`, or in this Python's environment.
    """
    on_path = shutil.which(_EXECUTABLE)
    places = [given] if given is not None else [_USUAL_PLACE, Path(sys.prefix)]
    if given is None and on_path is not None:
        places.insert(0, Path(on_path).resolve().parents[1])
    for place in places:
        for root in (
            place,
            *sorted(place.glob("lib/python3*/site-packages/pytriton/tritonserver")),
        ):
            if (root / "bin" / _EXECUTABLE).is_file():
                packed = root.parents[1] / "nvidia_pytriton.libs"
                return TritonServer(root, (packed,) if packed.is_dir() else ())
    return None


@dataclass(frozen=True)
class Ports:
    """The ports of a running server, all on 127.0.0.1."""

    http: int
    grpc: int
    metrics: int

    @classmethod
    def free(cls) -> Ports:
        """Return three that nobody listens on."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            http, grpc, metrics = (one.getsockname()[1] for one in sockets)
        return cls(http, grpc, metrics)


@dataclass
class RunningServer:
    """A server that was started.

    Attributes:
        ports: Where it listens.
        log: What it writes.
        process: Of the server, whose models run in children of it; of what supervises it, whose
            child it is then.
    """

    ports: Ports
    log: Path
    process: subprocess.Popen[bytes]

    def metrics(self) -> str:
        """Return what Prometheus would get.

        Raises:
            OSError: The server does not answer.
        """
        url = f"http://127.0.0.1:{self.ports.metrics}/metrics"
        with _ask(url, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

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
        log: The file for what it writes.
        options: More of its own command line.
        is_supervised: The bundle's supervise.py starts it, and starts it again; asking often.

    Raises:
        BackendError: It ends, or is not ready in time, with the end of its log.
    """
    ports = Ports.free()
    command = [*server_command(server, bundle, ports), *options]
    if is_supervised:
        places = [f"--port={ports.http}", f"--metrics-port={ports.metrics}", "--every=1", "--"]
        command = [sys.executable, str(bundle / SUPERVISE_NAME), *places, *command]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=server_environment(server, bundle),
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


def server_command(server: TritonServer, bundle: Path, ports: Ports) -> list[str]:
    """Return the command line that serves a bundle on this machine only."""
    return [
        str(server.executable),
        f"--model-repository={(bundle / REPOSITORY).resolve()}",
        f"--backend-directory={_backends(server)}",
        "--http-address=127.0.0.1",
        f"--http-port={ports.http}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={ports.grpc}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={ports.metrics}",
        "--allow-gpu-metrics=false",
        "--exit-on-error=true",
    ]


def server_environment(server: TritonServer, bundle: Path) -> Mapping[str, str]:
    """Return the environment in which the Python backend finds this Python's packages."""
    # It asks PATH for a Python, whose packages it takes; it does not look at PYTHONPATH.
    own = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    libraries = [*map(str, server.libraries), str(sysconfig.get_config_var("LIBDIR"))]
    libraries += [str((bundle / LIBRARIES).resolve()), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join(own),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
    }


def _backends(server: TritonServer) -> Path:
    """Return the folder of backends, with the stub of this Python's version where it is needed.

    Raises:
        BackendError: There is none for this version, or it cannot be laid where it is looked for.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server.stub(python)
    if stub is None:
        raise BackendError(f"{server.root} has no stub of its Python backend for Python {python}.")
    folder = server.root / "backends" / "python"
    # The backend looks for it beside itself, and nowhere else.
    beside = folder / _STUB
    if stub != beside and not (beside.exists() and beside.stat().st_size == stub.stat().st_size):
        partial = folder / f".{_STUB}.{os.getpid()}"
        try:
            shutil.copy2(stub, partial)
            partial.replace(beside)
        except OSError as error:
            raise BackendError(
                f"the stub of the Python backend cannot be copied into {folder}: {error.strerror}.",
                hint=f"It is looked for nowhere else. Once, by who may: cp {stub} {beside}",
            ) from None
    return folder.parent


def _wait_until_ready(running: RunningServer) -> None:
    end = time.monotonic() + _START_SECONDS
    while not running.is_ready():
        if running.process.poll() is not None or time.monotonic() > end:
            tail = running.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
            what = "ended" if running.process.poll() is not None else "is not ready"
            raise BackendError(f"tritonserver {what}. The end of its log:\n{tail}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let it answer what it has taken, and end it and its children in any case."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    # Stubs that outlive the server, and a server that does not end: the group is ours.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

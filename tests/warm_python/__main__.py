"""The server: forks for each request. See `tests.warm_python`."""

import faulthandler
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import types
from dataclasses import dataclass

MODULES = (
    "moh_deploy.api.bench",
    "moh_deploy.api.bisect",
    "moh_deploy.api.inline",
    "moh_deploy.api.inspect",
    "moh_deploy.api.precision",
    "moh_deploy.api.probe",
    "moh_deploy.api.run",
    "moh_deploy.api.tune",
    "moh_deploy.api.verify",
    "moh_deploy.cli",
    "moh_deploy.report.html",
    "moh_deploy.validate.compare.verify_runs",
    "tests.cuda.run_cases",
    "onnx_ir.passes.common",
)


@dataclass(frozen=True)
class Request:
    """What the client sends.

    Attributes:
        arguments: Of the interpreter: `-m MODULE`, `-c CODE` or a script, and what follows.
        is_watched: Python's account of a crash is asked for.
        executable: The client: processes of the process are quick, too.
        files: The numbers that the files which come with it have in the process.
        ignored: Signals.
    """

    arguments: list[str]
    is_watched: bool
    executable: str
    directory: str
    environment: dict[str, str]
    files: list[int]
    ignored: list[int]


def main(address: str) -> None:
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # or each process would copy pages to walk them
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    request = _next_process(listener)
    if request is not None:
        _run(request)


def _next_process(listener: socket.socket) -> Request | None:
    """Return twice: in each process that is asked for, and without a request at the end."""
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return None
        client, _ = listener.accept()
        _bury()
        if os.fork() == 0:
            listener.close()
            return _waited_for(client)
        client.close()


def _bury() -> None:
    """Let what has ended count among the times of this process."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _waited_for(client: socket.socket) -> Request:
    """Fork once more, and return in the process that is asked for; wait for it in the other."""
    size, files, _, _ = socket.recv_fds(client, 4, 250)
    with client.makefile("rb") as stream:
        request = Request(**json.loads(stream.read(int.from_bytes(size, "big"))))
    process = os.fork()
    if process == 0:
        client.close()
        _take(request, files)
        return request
    for file in files:
        os.close(file)
    client.sendall(process.to_bytes(4, "big"))
    watched = os.pidfd_open(process)
    ready, _, _ = select.select([watched, client], [], [])
    was_killed = client in ready  # the client: it says nothing of its own
    if was_killed:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not was_killed:
        client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
    os._exit(0)


def _take(request: Request, files: list[int]) -> None:
    """Give this process the files, the directory and the environment of the client."""
    # Out of the way first: a file may have the number that another one is to have.
    moved = [os.dup2(file, 1000 + place) for place, file in enumerate(files)]
    os.closerange(0, 1000)
    for file, number in zip(moved, request.files, strict=True):
        os.dup2(file, number)
        os.close(file)
    sys.executable = request.executable
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environment)
    for number in request.ignored:
        signal.signal(number, signal.SIG_IGN)
    if request.is_watched:
        faulthandler.enable()


def _run(request: Request) -> None:
    first, *rest = request.arguments
    home = "" if first in ("-m", "-c") else os.path.dirname(os.path.abspath(first))
    path = request.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = dict.fromkeys([home or request.directory, *filter(None, path), *sys.path])
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])

"""A stand-in for the interpreter whose processes have moh_deploy imported before they begin.

A server imports what commands need, once, and forks for each process that is asked for: 0.1 s of
CPU time instead of more than a second. Such a process has its own streams, open files, directory,
environment and arguments, gets signals, and ends as any other does; only `sys.modules` is fuller
than it would be. What is said of imports, or of crashes, is tested with `sys.executable`.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kept_builds import ROOT

_CLIENT = Path(__file__).with_name("client.py")


def is_possible() -> bool:
    """Return whether the system has what client and server need: Linux has."""
    return sys.platform == "linux" and Path("/proc/self/fd").is_dir()


@contextmanager
def warm_python() -> Iterator[Path]:
    """Start a server, and end it at the end; what it gives is called as the interpreter is."""
    # Not one of pytest's folders: the name of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        client = Path(folder, "python")
        client.write_text(f"#!{sys.executable} -IS\n{_CLIENT.read_text()}")
        client.chmod(0o755)
        command = [sys.executable, "-m", __name__, str(client.with_name("socket"))]
        # It ends when its stdin does: with this process, however that ends.
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server:
            assert server.stdout.readline() == b"ready\n"
            yield client
            server.stdin.close()

"""What tests of `isolated` let another process do."""

import errno
import os
import signal
import tempfile

from moh_deploy.errors import ConfigError
from moh_deploy.system.progress import Progress


def refuse(name: str) -> None:
    raise ConfigError(f"{name} is wrong.", hint="Right it.")


def die(text: str) -> None:
    os.write(2, text.encode())
    tempfile.mkdtemp(prefix="dying-")
    os.kill(os.getpid(), signal.SIGKILL)


def chat() -> int:
    print("{}")
    os.write(1, b"\xff")
    return 7


def work(last: str, *, progress: Progress) -> None:
    with progress.step("reading"):
        pass
    with progress.step(last):
        os.kill(os.getpid(), signal.SIGSEGV)


def fill() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def get_ready() -> None:
    """Show that it was called in the process that a task runs in later."""
    os.environ["IS_READY"] = "yes"
    print("ready")


def is_ready() -> tuple[str | None, str]:
    return os.environ.get("IS_READY"), tempfile.gettempdir()


def fail_to_get_ready() -> None:
    raise ImportError("no such library")

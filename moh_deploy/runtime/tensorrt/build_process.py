"""Start a process that builds and times engines, hear its steps, and end it (ADR 16)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TypeVar

from moh_deploy.errors import BackendError
from moh_deploy.runtime.tensorrt import messages
from moh_deploy.runtime.tensorrt.flavour import Flavour
from moh_deploy.system.isolate import child_environment, how_it_ended
from moh_deploy.system.progress import Progress

_T = TypeVar("_T", messages.BuildAnswer, messages.TimingAnswer)

LINKS_NAME = "links"
_LOG_LINES = 12
_WORKER = "moh_deploy.runtime.tensorrt.worker"


class BuildProcess:
    """A process with TensorRT in it. It is ended when the block is left.

    Args:
        flavour: Which of the two.
        folder: Where it may write.
        log: File for what TensorRT says.

    Attributes:
        stack: What TensorRT and the machine are.

    Raises:
        BackendError: TensorRT is not installed, or does not start.
    """

    stack: messages.Stack

    def __init__(self, flavour: Flavour, *, folder: Path, log: Path) -> None:
        flavour.require_installed()
        self._flavour, self._folder, self._log = flavour, folder, log
        self._closing = ExitStack()

    def __enter__(self) -> BuildProcess:
        with ExitStack() as failing:
            # If anything below raises, the process is ended; else that is left to `__exit__`.
            failing.push(self._closing)
            self._start()
            first = next(self._messages(), None)
            if not isinstance(first, messages.Stack):
                raise self._died()
            self.stack = first
            self._flavour.check_version(self.stack.version)
            failing.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    @property
    def pid(self) -> int:
        """The number of the process that builds."""
        return self._process.pid

    def build(self, request: messages.BuildRequest, progress: Progress) -> messages.BuildAnswer:
        """Send a request, show its steps, and return what was built.

        Raises:
            BackendError: It failed, or died; with the end of its log.
            OSError: It could not write.
        """
        return self._answer(request, progress, messages.BuildAnswer)

    def time(self, request: messages.TimingRequest, progress: Progress) -> messages.TimingAnswer:
        """Send a request, show its steps, and return the times. Raises as `build` does."""
        return self._answer(request, progress, messages.TimingAnswer)

    def _answer(self, request: messages.Order, progress: Progress, kind: type[_T]) -> _T:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(messages.encode(request))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        with ExitStack() as shown:
            for message in self._messages():
                if isinstance(message, kind):
                    return message
                if isinstance(message, messages.BuildStep):
                    shown.close()
                    shown.enter_context(progress.step(message.name))
                if isinstance(message, messages.Failure) and message.errno is not None:
                    raise OSError(message.errno, message.text)
                if isinstance(message, messages.Failure):
                    raise BackendError(f"{self._flavour.title}: {message.text}.{self._log_tail()}")
        raise self._died()

    def _start(self) -> None:
        environment = child_environment()
        # A link by the name that the parser looks for; the dynamic linker reads LD_LIBRARY_PATH
        # only when a process starts.
        found = self._flavour.library_to_name()
        if found is not None:
            links = self._folder / LINKS_NAME
            links.mkdir(exist_ok=True)
            (links / found[1]).symlink_to(found[0])
            searched = [str(links), os.environ.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, searched))
        # Messages go through a pipe of their own: TensorRT and its plugins may print to stdout.
        reading, writing = os.pipe()
        self._channel: IO[str] = self._closing.enter_context(os.fdopen(reading, encoding="utf-8"))
        log = self._closing.enter_context(self._log.open("ab"))
        command = [sys.executable, "-m", _WORKER, self._flavour.name, str(writing)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process to hear
                text=True,
            )
        finally:
            # The other process has the only writing end left, so that reading ends when it dies.
            os.close(writing)
        self._closing.callback(self._end)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        # What was not sent when the process died cannot be sent any more.
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def _messages(self) -> Iterator[messages.Message]:
        for line in self._channel:
            if not line.endswith("\n"):
                return  # it died in the middle of it
            message = messages.decode(line)
            assert not isinstance(message, messages.BuildRequest | messages.TimingRequest)
            yield message

    def _died(self) -> BackendError:
        how = how_it_ended(self._process.wait())
        return BackendError(
            f"{self._flavour.title} ended the process that builds with {how}.{self._log_tail()}"
        )

    def _log_tail(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        # INFO is most of the log, and rarely why it failed; it is better than nothing if it is all.
        telling = [line for line in lines if not line.startswith("INFO: ")] or lines
        return "".join(f"\n  {name}" for name in telling[-_LOG_LINES:])

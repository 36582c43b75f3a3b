"""Do something in a process of its own, and say what it returned, or how the process ended.

The task is a function that can be imported, and arguments that can be pickled. They go to the other
process as a file in a folder that no other user may write to; the answer comes back as another.
"""

import errno
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Generic, TypeVar, cast

import moh_deploy
from moh_deploy.errors import BackendError, MoHDeployError
from moh_deploy.system.progress import SilentProgress, progress_for_terminal
from moh_deploy.system.staging import is_disk_full, scratch_directory, temporary_place
from moh_deploy.system.termination import cleaned_up_on_termination

Answer = TypeVar("Answer")

_PROCESS = "moh_deploy.system.isolated_process"
_WAITING = "--waiting"
_TASK, _ANSWER, _STEPS, _SAID = "task.pickle", "answer.pickle", "steps.txt", "said.txt"

_DISK_FULL = 74
"""What the other process ends with where it cannot even say so; of `os.EX_IOERR`, where that is."""

_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Outcome(Generic[Answer]):
    """The result of a task: its answer, its error, or how its process ended."""

    answer: Answer | None  # what the function returned; None if the process ended before
    # What it raised instead, of the errors that moh-deploy raises on purpose.
    error: MoHDeployError | None
    exception: str | None  # any other exception that it raised: `ValueError: ...`
    return_code: int | None  # how the process ended; None if it was ended for taking too long
    said: str = ""  # what it wrote, to stdout and stderr; empty if it was shown
    step: str | None = None  # what it was doing, where steps were asked for

    def required(self, what: str) -> Answer:
        """Return the answer, or raise the error of the process.

        Args:
            what: The process, as the subject of a sentence.

        Raises:
            MoHDeployError: What the function raised.
            BackendError: There is no answer: the sentence has how the process ended, and the last
                that it said.
        """
        if self.error is not None:
            raise self.error
        if self.answer is None:
            raise BackendError(f"{what} ended with {self.how()}: {self.said[-_MOST_CHARACTERS:]}")
        return self.answer

    def how(self) -> str:
        """Say how the process ended."""
        return "a timeout" if self.return_code is None else how_it_ended(self.return_code)


@dataclass(frozen=True)
class EarlyProcess:
    """A process that was started before it is known what `isolated` is to call in it."""

    process: subprocess.Popen[bytes]  # it waits for the name of a folder
    said: IO[bytes]  # what it writes, to stdout and stderr

    def hand_over(self, folder: Path) -> subprocess.Popen[bytes]:
        """Let it do the task in a folder."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as pipe:  # how it ended says more
            pipe.write(os.fsencode(folder))
        return self.process


@contextmanager
def started_early(get_ready: Callable[[], object]) -> Iterator[EarlyProcess]:
    """Start the process of one `isolated` while there is something else to be done.

    It is ended with the block, whether something was called in it or not.

    Args:
        get_ready: Called there at once, for what it imports: one that its module's name finds.

    Raises:
        PackageError: There is no place for temporary files.
    """
    named = [_WAITING, get_ready.__module__, get_ready.__qualname__]
    with tempfile.TemporaryFile(dir=temporary_place("moh-deploy-isolated").parent) as said:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", _PROCESS, *named],
            stdin=subprocess.PIPE,  # Its end tells the process that it is not needed any more.
            stdout=said,
            stderr=said,
            env=child_environment(),
        )
        try:
            yield EarlyProcess(process, said)
        finally:
            process.terminate()
            process.communicate()


def isolated(
    function: Callable[..., Answer],
    *arguments: object,
    timeout_s: float | None = None,
    show_steps: bool | None = None,
    early: EarlyProcess | None = None,
) -> Outcome[Answer]:
    """Call a function in another process, which ends with this one.

    Args:
        function: One that its module's name finds; it returns something.
        arguments: Its arguments.
        timeout_s: How long it may take.
        show_steps: The function takes a `progress` besides, whose last step the outcome has. True
            shows steps where stderr is a terminal. Then what the process writes is shown, too, and
            not kept.
        early: The process to call it in, which is good for one call; None starts one. It shows
            nothing.

    Raises:
        PackageError: There is no place for temporary files, or its disk is full.
    """
    assert early is None or show_steps is None
    with scratch_directory("moh-deploy-isolated") as folder:
        # By files, not by pipes: stdout belongs to the user's code, which may print anything, and a
        # large answer cannot block.
        task = _Task(function, arguments, show_steps)
        (folder / _TASK).write_bytes(pickle.dumps(task))
        if early is None:
            process = _started(folder, is_shown=show_steps is not None)
            return_code = _waited(process, timeout_s)
        else:
            return_code = _waited(early.hand_over(folder), timeout_s)
            early.said.seek(0)
            (folder / _SAID).write_bytes(early.said.read())
        if return_code == _DISK_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # `scratch_directory` says where
        answer, error, exception = None, None, None
        if (folder / _ANSWER).is_file():
            # Written by our own process, into a folder that no other user may write to.
            answer, error, exception = pickle.loads((folder / _ANSWER).read_bytes())
        said, step = _read_text(folder / _SAID), _read_text(folder / _STEPS)
    return Outcome(answer, error, exception, return_code, said.strip(), step or None)


def carry_out_later(module: str, get_ready: str) -> None:
    """Get ready, wait to be told a folder, and do the task there; nothing if none is told.

    Args:
        module, get_ready: Where a function is found, and its name.
    """
    getattr(import_module(module), get_ready)()
    folder = os.fsdecode(sys.stdin.buffer.read())
    if folder:
        os.environ["TMPDIR"] = folder
        tempfile.tempdir = None  # that of before, if it was asked for
        carry_out(Path(folder))


def carry_out(folder: Path) -> None:
    """Do the task in a folder, and leave the answer there; on a full disk, end with a status."""
    answer, error, exception = None, None, None
    try:
        try:
            with redirect_stdout(sys.stderr):  # What code of the user's prints is no report.
                task = cast(_Task, pickle.loads((folder / _TASK).read_bytes()))
                steps: dict[str, object] = {}
                if task.show_steps is not None:
                    shown_by = progress_for_terminal(quiet=not task.show_steps)
                    steps["progress"] = _NotedProgress(folder / _STEPS, shown_by)
                answer = task.function(*task.arguments, **steps)
        except MoHDeployError as raised:
            error = raised
        except Exception as raised:
            if is_disk_full(raised):
                raise
            traceback.print_exc()
            exception = f"{type(raised).__name__}: {raised}"
        # Exceptions travel as their text: those of other packages may not survive pickling.
        # Whole, or not at all: a process may be killed at any moment.
        written = folder / f"{_ANSWER}.part"
        written.write_bytes(pickle.dumps((answer, error, exception)))
        written.replace(folder / _ANSWER)
    except Exception as raised:
        if not is_disk_full(raised):
            raise
        sys.exit(_DISK_FULL)
    if exception is not None:
        sys.exit(1)


def child_environment() -> dict[str, str]:
    """Return this process's environment, with moh_deploy on Python's path.

    It may be on this process's path without being installed. The working directory is on neither:
    a `queue.py` there would run in place of Python's own.
    """
    # First on the path, so that both processes run the same moh_deploy.
    home = str(Path(moh_deploy.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def how_it_ended(return_code: int) -> str:
    """Return `SIGSEGV`, `signal 35` or `status 3`."""
    if return_code >= 0:
        return f"status {return_code}"
    names = {number.value: number.name for number in signal.Signals}  # real-time signals lack names
    return names.get(-return_code, f"signal {-return_code}")


@dataclass(frozen=True)
class _Task:
    """The call that the other process is to make; see `isolated`."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    show_steps: bool | None


class _NotedProgress(SilentProgress):
    """Write down each step before it begins, and show it where progress is shown."""

    def __init__(self, path: Path, shown_by: SilentProgress) -> None:
        super().__init__()
        self._path, self._shown_by = path, shown_by

    def _shown(self, name: str) -> AbstractContextManager[object]:
        self._path.write_text(name, encoding="utf-8")
        return self._shown_by.step(name)


def _started(folder: Path, *, is_shown: bool) -> subprocess.Popen[bytes]:
    """Start the other process."""
    # What it has in temporary files when it is ended goes with the folder.
    environment = {**child_environment(), "TMPDIR": str(folder)}
    # Python's account of a crash is for the caller that keeps stderr.
    options = [] if is_shown else ["-X", "faulthandler"]
    with (folder / _SAID).open("wb") as said:
        return subprocess.Popen(
            [sys.executable, *options, "-m", _PROCESS, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=sys.__stderr__ if is_shown else said,  # What is printed there is no answer.
            stderr=None if is_shown else said,
            env=environment,
        )


def _waited(process: subprocess.Popen[bytes], timeout_s: float | None) -> int | None:
    # Not waited for when this is ended: that may have stopped a wait, which holds a lock.
    with process, cleaned_up_on_termination(process.terminate):
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
        except KeyboardInterrupt:
            process.terminate()  # Else the task would run to its end. What it writes it removes.
            raise


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

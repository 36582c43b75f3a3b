"""Runs steps in processes that may crash or hang: a worker for jobs, a process for each command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from tests.gpu.steps import Facts, Result, Status, Step

ROOT = Path(__file__).resolve().parents[2]
_KEPT_LINES = 60
_KILLED_WITHIN_S = 5.0
_STARTED_WITHIN_S = 30.0


class Worker:
    """A process that runs jobs one after the other, and is replaced when one has ended it.

    Args:
        command: Starts a process that does what `tests.gpu.serve` does.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: _Process | None = None

    def run(self, step: Step, common: Facts, timeout_s: float) -> Result:
        """Return what became of a job's step, in `timeout_s` at most.

        Args:
            common: Arguments of every job.
        """
        start = time.monotonic()
        if step.fresh:
            self.close()
        if self._process is None or not self._process.is_alive():
            self.close()
            self._process = _Process(self._command, replies=True)
            # To load torch and to open the device is not of the step's time.
            is_ready = self._process.reply(max(timeout_s, _STARTED_WITHIN_S)) is not None
        else:
            is_ready = True
        process = self._process
        message = {"job": step.job, "arguments": {**common, **step.arguments}}
        reply = process.ask(json.dumps(message), timeout_s) if is_ready else None
        seconds = time.monotonic() - start
        if reply is None:
            result = _without_reply(step, process, seconds)
        else:
            result = Result(step.name, seconds=seconds, **json.loads(reply))
        if result.ended_worker:
            self.close()
        return result

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process = None


def run_command(command: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
    """Run a process and all that it starts.

    Returns:
        Its exit status, or None if it was killed after `timeout_s`; and the end of what it printed.
    """
    process = _Process(command, replies=False)
    code = process.wait(timeout_s)
    process.kill()
    return code, process.output()


def run_shown(command: Sequence[str], timeout_s: float) -> int | None:
    """Run a process whose output is shown; return its exit status, None if it was killed."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _kill_group(process.pid)


def _without_reply(step: Step, process: _Process, seconds: float) -> Result:
    code = process.wait(_KILLED_WITHIN_S) if process.has_ended else None
    process.kill()
    status: Status = "hung" if code is None else "crashed"
    ending = f"no answer after {seconds:.1f} s: killed" if code is None else _ending(code)
    return Result(
        step.name, status, seconds, ending, {"output": process.output()}, ended_worker=True
    )


def _ending(code: int) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit status {code}"


class _Process:
    """A process group, whose output is read all the time: nothing in it can wait for a reader.

    Args:
        replies: Lines of stdout are replies; otherwise they are output like those of stderr.

    Attributes:
        has_ended: Nothing can come from it any more.
    """

    def __init__(self, command: Sequence[str], *, replies: bool) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if replies else subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.has_ended = False
        self._replies: SimpleQueue[str | None] = SimpleQueue()
        self._printed: deque[str] = deque(maxlen=_KEPT_LINES)
        reads = (self._read_replies, self._read_errors) if replies else (self._read_output,)
        self._readers = [threading.Thread(target=read, daemon=True) for read in reads]
        for reader in self._readers:
            reader.start()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, line: str, timeout_s: float) -> str | None:
        """Send a line and return the line that comes back; None if the process ends or is late."""
        # What is printed from here on is this step's.
        self._printed.clear()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:  # the process has closed its end
            self.has_ended = True
            return None
        return self.reply(timeout_s)

    def reply(self, timeout_s: float) -> str | None:
        """Return the next line; None if the process ends or is late."""
        try:
            return self._replies.get(timeout=timeout_s)
        except Empty:
            return None

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit status; None if there is none within that time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End the process and all that it has started."""
        _kill_group(self._process.pid)
        # A process that waits for a driver may not end at all: it is left behind.
        self.wait(_KILLED_WITHIN_S)
        for reader in self._readers:
            reader.join(1.0)
        if not any(reader.is_alive() for reader in self._readers):
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def output(self) -> str:
        """Return the end of what was printed."""
        return "".join(self._printed)[-4000:]

    def _read_replies(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # else the process died within it
                self._replies.put(line)
        self.has_ended = True
        self._replies.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._printed.extend(self._process.stderr)

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        self._printed.extend(self._process.stdout)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)

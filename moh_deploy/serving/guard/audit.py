"""The audit log of a guard: one JSON object a line, each written whole."""

from __future__ import annotations

import fcntl
import glob
import json
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard.state_machine import Transition
from moh_deploy.system.json_text import to_json_text

# Know which levels were running when a process died: a kernel may take the process along.
#
# Each guard keeps a small file beside the audit log, with the number of runs under way on each
# level. It is shared memory, so it outlives the process. The process holds a lock on its file as
# long as it lives; the next process reads the files that are not locked.

_COUNT = np.dtype("<u4")


class RunningMarks:
    """The file of this process beside its audit log; without a log there is no file.

    Raises:
        ConfigError: Its folder cannot be written.
    """

    def __init__(self, log: Path | None, names: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._counts = np.zeros(len(names), _COUNT)
        self._path: Path | None = None
        if log is None:
            return
        # The next process may have another chain, so the file has the names.
        head = "\n".join(names).encode() + b"\n\n"
        try:
            with ExitStack() as undo:
                self._file, path = tempfile.mkstemp(prefix=f"{log.name}.running-", dir=log.parent)
                undo.callback(os.close, self._file)
                undo.callback(os.unlink, path)
                # Locked while it is empty: others read only files with content.
                fcntl.flock(self._file, fcntl.LOCK_EX)
                os.write(self._file, head + self._counts.tobytes())
                memory = mmap.mmap(self._file, 0)
                undo.pop_all()
        except OSError as error:
            raise ConfigError(
                f"the folder of the audit log {log} cannot be written: {error.strerror}."
            ) from None
        self._counts = np.frombuffer(memory, _COUNT, offset=len(head))
        self._path = Path(path)

    @contextmanager
    def during(self, level: int) -> Iterator[None]:
        """Count a run on a level for as long as the block lasts, however it ends."""
        with self._lock:
            self._counts[level] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts[level] -= 1

    def close(self) -> None:
        """Remove the file: this process ends in order."""
        with self._lock:
            path, self._path = self._path, None
            if path is not None:
                self._counts = self._counts.copy()  # of runs that go on
                path.unlink(missing_ok=True)
                os.close(self._file)


def died_in(log: Path | None) -> tuple[str, ...]:
    """Return the levels that were running when processes died, and remove their files."""
    if log is None:
        return ()
    found: dict[str, None] = {}
    for path in sorted(log.parent.glob(f"{glob.escape(log.name)}.running-*")):
        # Another process may be reading it, and remove it.
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head, _, counts = file.read().partition(b"\n\n")
            if counts:
                for index, name in enumerate(head.decode(errors="replace").split("\n")):
                    if any(counts[_COUNT.itemsize * index :][: _COUNT.itemsize]):
                        found[name] = None
                path.unlink(missing_ok=True)
    return tuple(found)


class AuditLog:
    """Appends transitions to a file; several processes may append to the same file.

    Args:
        path: The file; None keeps no log.

    Raises:
        ConfigError: It cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: int | None = None
        self._is_torn = False
        if path is None:
            return
        try:
            # A line in one write at the end of the file: those of two processes do not mix.
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"the audit log {path} cannot be written: {error.strerror}."
            ) from None

    def add(self, change: Transition, now: float) -> None:
        """Write a transition of `now`, in seconds since 1970; to stderr if the disk is full."""
        if self._file is None:
            return
        time = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        entry = {
            "time": time.replace("+00:00", "Z"),
            "from": change.mode_from,
            "to": change.mode_to,
            "reason": change.reason,
            "rung": change.rung,
            "state": change.state,
            "evidence": change.evidence,
        }
        line = json.dumps(json.loads(to_json_text(entry)))
        try:
            # A full disk takes a part of a line, and says why at the next write only.
            rest = ("\n" * self._is_torn + line + "\n").encode()
            while rest:
                rest = rest[os.write(self._file, rest) :]
                self._is_torn = bool(rest)
        except OSError as error:
            print(
                f"warning: the audit log cannot be written: {error.strerror}; its line is {line}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

"""Know, after the process has died, which rung was running: a kernel may take the process along.

Each guard keeps a small file beside the audit log, with the number of runs on each rung that have
begun and not ended. It is shared memory, so it says so still when nothing could be written any
more. Its process holds a lock on it as long as it lives; who starts next reads the files that
nobody holds.
"""

from __future__ import annotations

import fcntl
import glob
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from moh_deploy.errors import ConfigError

_BYTES = 4


class RunningMarks:
    """The mark file of this process.

    Args:
        log: The audit log that it stands beside; None keeps no marks.
        rungs: Names of the rungs.

    Raises:
        ConfigError: Its folder cannot be written.
    """

    def __init__(self, log: Path | None, rungs: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * len(rungs)
        self._path: Path | None = None
        if log is None:
            return
        # Names first: who reads it may have another ladder.
        head = "\n".join(rungs).encode() + b"\n\n"
        self._start = len(head)
        try:
            with ExitStack() as undo:
                self._file, path = tempfile.mkstemp(prefix=f"{log.name}.running-", dir=log.parent)
                undo.callback(os.close, self._file)
                undo.callback(os.unlink, path)
                # Held before it says anything: what is empty is nobody's yet.
                fcntl.flock(self._file, fcntl.LOCK_EX)
                os.write(self._file, head + bytes(_BYTES * len(rungs)))
                self._memory = mmap.mmap(self._file, 0)
                undo.pop_all()
        except OSError as error:
            raise ConfigError(
                f"the folder of the audit log {log} cannot be written: {error.strerror}."
            ) from None
        self._path = Path(path)

    @contextmanager
    def during(self, rung: int) -> Iterator[None]:
        """Mark a run on a rung for as long as the block lasts, however it ends."""
        if self._path is None:
            yield
            return
        self._count(rung, 1)
        try:
            yield
        finally:
            self._count(rung, -1)

    def close(self) -> None:
        """Take the file away: this process ends in order."""
        with self._lock:
            path, self._path = self._path, None
            if path is not None:
                path.unlink(missing_ok=True)
                self._memory.close()
                os.close(self._file)

    def _count(self, rung: int, by: int) -> None:
        with self._lock:
            self._counts[rung] += by
            if self._path is not None:
                place = self._start + _BYTES * rung
                count = self._counts[rung].to_bytes(_BYTES, "little")
                self._memory[place : place + _BYTES] = count


def died_in(log: Path | None) -> tuple[str, ...]:
    """Return the rungs that were running when processes died, and take their files away."""
    if log is None:
        return ()
    found: dict[str, None] = {}
    for path in sorted(log.parent.glob(f"{glob.escape(log.name)}.running-*")):
        # Another process may be reading it, and take it away.
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head, _, counts = file.read().partition(b"\n\n")
            if not counts:
                continue
            for index, name in enumerate(head.decode(errors="replace").split("\n")):
                if any(counts[_BYTES * index : _BYTES * (index + 1)]):
                    found[name] = None
            path.unlink(missing_ok=True)
    return tuple(found)

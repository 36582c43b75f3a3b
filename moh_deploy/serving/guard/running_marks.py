"""Know which levels were running when a process died: a kernel may take the process along.

Each guard keeps a small file beside the audit log, with the number of runs under way on each level.
It is shared memory, so it outlives the process. The process holds a lock on its file as long as it
lives; the next process reads the files that are not locked.
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

import numpy as np

from moh_deploy.errors import ConfigError

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

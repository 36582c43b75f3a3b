"""Do work beside the answers: after they were sent, on a thread of its own, and never in their way.

The queue is bounded: what comes while it is full is dropped and counted, so that a slow comparison
costs memory and time that are known beforehand.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

Job = Callable[[], None]


class Aside:
    """A thread that does jobs, one after the other.

    Args:
        name: What the thread is called.
        most_waiting: So many jobs may wait.

    Attributes:
        dropped: How many jobs found the queue full.
        failed: How many jobs raised; `last_error` is what the last of them did.
    """

    def __init__(self, name: str, most_waiting: int = 4) -> None:
        self.dropped = 0
        self.failed = 0
        self.last_error = ""
        self._jobs: queue.Queue[Job | None] = queue.Queue(most_waiting)
        self._lock = threading.Lock()
        self._closing = False
        # A daemon: a job that hangs keeps no process alive.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Hand over a job, and tell whether there was room for it."""
        try:
            if self._closing:
                return False
            self._jobs.put_nowait(job)
        except queue.Full:
            with self._lock:
                self.dropped += 1
            return False
        return True

    def wait(self) -> None:
        """Wait until all jobs that were handed over are done."""
        self._jobs.join()

    def close(self, timeout_s: float = 10.0) -> None:
        """Finish the job at hand, leave out the rest, and end the thread."""
        self._closing = True
        with suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
                self._jobs.task_done()
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(job)
            self._jobs.task_done()
        self._jobs.task_done()

    def _do(self, job: Job) -> None:
        try:
            job()
        except Exception as error:  # whatever it is, the next job goes on
            self.failed += 1
            self.last_error = f"{type(error).__name__}: {error}"

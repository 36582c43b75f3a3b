"""Run jobs beside the answers, on a thread of its own.

The queue is bounded: a job that finds it full is dropped and counted. So slow comparisons delay no
answer, and take bounded memory.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

Job = Callable[[], None]


class Aside:
    """A thread that runs jobs, one after the other; so many may wait in its queue."""

    def __init__(self, name: str, most_waiting: int = 4) -> None:
        self.dropped = 0  # jobs that found the queue full
        self.failed = 0  # jobs that raised
        self._jobs: queue.Queue[Job | None] = queue.Queue(most_waiting)
        self._lock = threading.Lock()
        self._closing = False
        # A daemon: a job that hangs keeps no process alive.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Hand over a job, and tell whether there was room for it."""
        if self._closing:
            return False
        try:
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
        """Finish the job at hand, drop the others, and end the thread."""
        self._closing = True
        with suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
                self._jobs.task_done()
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # whatever it is, the next job goes on
                self.failed += 1
            self._jobs.task_done()
        self._jobs.task_done()

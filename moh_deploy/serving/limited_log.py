"""Limit what one client's bad requests can write into a log."""

from __future__ import annotations

import sys
import threading
import time


class LimitedLog:
    """Writes to stderr, at most so many entries in a while, and then how many it left out.

    Several threads may write at the same time.

    Args:
        most: Entries that are written in each period; further ones are counted.
        period_s: How long a period is. The first entry begins one, and so does the first behind it.
    """

    def __init__(self, most: int = 20, period_s: float = 60.0) -> None:
        self._most, self._period_s = most, period_s
        self._lock = threading.Lock()
        self._entries = 0
        self._ends = 0.0

    def write(self, entry: str) -> None:
        """Write an entry of whole lines, or count it."""
        with self._lock:
            now = time.monotonic()
            if now >= self._ends:
                self._tell()
                self._ends = now + self._period_s
            self._entries += 1
            if self._entries > self._most:
                return
        print(entry, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Say how many entries were left out since the last period began."""
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        left_out, self._entries = self._entries - self._most, 0
        if left_out > 0:
            print(
                f"warning: {left_out} more errors within {self._period_s:g} s were not shown.",
                file=sys.stderr,
                flush=True,
            )

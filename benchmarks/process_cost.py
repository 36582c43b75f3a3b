"""What one run of a command costs: wall time, CPU time and memory, children included. Linux only.

This file and those that import it stay small: Linux counts the memory of the process that starts
another towards the peak of the one it starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Cost:
    """What one run cost.

    Attributes:
        wall_s: From start to end.
        cpu_s: User and system time of the process and its children.
        peak_mib: Peak resident memory of the largest process.
        largest_child_mib: Peak resident memory of the largest child; 0 without children. Sampled,
            so children of less than a few hundredths of a second are missed.
        sum_mib: Peak of the resident memory of all processes together, pages that they share
            counted twice. Sampled.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float
    largest_child_mib: float
    sum_mib: float


class CommandFailed(Exception):
    """A measured command did not end with 0."""


def measure(command: Sequence[str]) -> Cost:
    """Run a command and return its cost; its output is thrown away.

    Raises:
        CommandFailed: With the end of what it printed.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        with _MemorySampler(process.pid) as memory:
            _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        # The process has been waited for behind Popen's back.
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            words = output.read().decode(errors="replace").strip()[-2000:]
            raise CommandFailed(f"{' '.join(command)}\nended with {process.returncode}:\n{words}")
    return Cost(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,
        largest_child_mib=memory.largest_child_kib / 1024,
        sum_mib=memory.sum_kib / 1024,
    )


class _MemorySampler:
    """Watches a process and all below it while the `with` block runs.

    Attributes:
        largest_child_kib: Highest peak of a process below the first.
        sum_kib: Highest sum of what all of them held at one time.
    """

    def __init__(self, pid: int) -> None:
        self.largest_child_kib = 0
        self.sum_kib = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            children = list(_descendants(self._pid))
            now = [_memory_kib(pid, "VmRSS") for pid in [self._pid, *children]]
            peaks = [_memory_kib(pid, "VmHWM") for pid in children]
            self.sum_kib = max(self.sum_kib, sum(now))
            self.largest_child_kib = max([self.largest_child_kib, *peaks])


def _descendants(pid: int) -> Iterator[int]:
    """Find the programs below a process.

    A child with its parent's command line has not started its own program yet: until then it lives
    in its parent's memory, which would be counted twice.
    """
    command_line = _command_line(pid)
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, _read(listing).split()):
            if _command_line(child) != command_line:
                yield child
            yield from _descendants(child)


def _command_line(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline"))


def _memory_kib(pid: int, field: str) -> int:
    """Return a figure of /proc/PID/status; 0 if the process has gone."""
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def machine() -> dict[str, str]:
    """Return what the figures depend on: processor, cores, memory, Python."""
    return {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": sys.version.split()[0],
    }


def load_average() -> str:
    """Return the load average over 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"

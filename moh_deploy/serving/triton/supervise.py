"""Start a server, and start it again when it ends or no longer gives answers.

    python3 supervise.py [--port 8000] [--metrics-port 8002] -- tritonserver --model-repository=DIR

Triton does not start a model's process again that has died or hangs, and calls it ready. Where no
cluster has a liveness probe this stands in: it asks for an answer by probe.py, which lies beside
it. At SIGTERM or Ctrl-C the server is ended, too. It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

_PROBE = Path(__file__).resolve().parent / "probe.py"
_LONGEST_PAUSE_S = 30.0
_HEALTHY_S = 60.0


class Supervisor:
    """Keeps one server running.

    Args:
        command: Starts it.
        probe: Returns whether it gives an answer.
        every_s: How long to wait between two probes.
        failures: So many probes without an answer, one after the other, end it.
        start_s: How long it may take until it gives the first answer.
        stop_s: How long it may take to end before it is killed; a model that has died cannot be
            unloaded, which Triton would wait for.
    """

    def __init__(
        self,
        command: Sequence[str],
        probe: Callable[[], bool],
        *,
        every_s: float = 10.0,
        failures: int = 3,
        start_s: float = 600.0,
        stop_s: float = 10.0,
    ) -> None:
        self._command = list(command)
        self._probe = probe
        self._every_s, self._failures = every_s, failures
        self._start_s, self._stop_s = start_s, stop_s
        self._is_over = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Start the server again and again, until `end` is called."""
        pause_s = 0.0
        while not self.is_over():
            begun = time.monotonic()
            self._process = subprocess.Popen(self._command)
            why = self._watch(begun)
            self._stop()
            if self.is_over():
                return
            # What fails at once will do so again: it is tried less and less often.
            is_healthy = time.monotonic() - begun > _HEALTHY_S
            pause_s = 0.0 if is_healthy else min(max(1.0, 2 * pause_s), _LONGEST_PAUSE_S)
            print(f"supervise: the server {why}; it starts again in {pause_s:g} s", flush=True)
            self._wait(pause_s)

    def end(self, *_: int | FrameType | None) -> None:
        """End the server, and `run` with it: a handler of signals, too."""
        self._is_over = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def is_over(self) -> bool:
        """Tell whether the server is to end."""
        return self._is_over

    def _watch(self, begun: float) -> str:
        """Wait until the server has to be started again, and return why."""
        assert self._process is not None
        has_answered, failed = False, 0
        while not self.is_over():
            code = self._process.poll()
            if code is not None:
                return f"ended with {code}"
            if self._probe():
                if not has_answered:
                    seconds = time.monotonic() - begun
                    print(f"supervise: the server answers, after {seconds:.1f} s", flush=True)
                has_answered, failed = True, 0
            elif has_answered:
                failed += 1
            if failed >= self._failures:
                return f"gave no answer {failed} times"
            if not has_answered and time.monotonic() - begun > self._start_s:
                return f"gave no answer within {self._start_s:g} s"
            self._wait(self._every_s if has_answered else min(1.0, self._every_s))
        return "is to end"

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.is_over() and time.monotonic() < end:
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))

    def _stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(arguments: Sequence[str]) -> None:
    """Supervise the command behind `--`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", default="8000", help="the server's port for HTTP")
    parser.add_argument("--metrics-port", default="8002", help="the port of its metrics")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two probes")
    parser.add_argument("--failures", type=int, default=3, help="probes that fail in a row")
    parser.add_argument("command", nargs="+", help="behind --: what starts the server")
    given = parser.parse_args(arguments)
    asked = [sys.executable, str(_PROBE), given.port, given.metrics_port]

    def probe() -> bool:
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    supervisor = Supervisor(given.command, probe, every_s=given.every, failures=given.failures)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, supervisor.end)
    supervisor.run()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Start a server, and start it again when it ends or no longer gives answers.

    python3 supervise.py [--port 8000] [--metrics-port 8002] -- tritonserver --model-repository=DIR

Triton does not start a model's process again that has died or hangs, and calls it ready. Without
the liveness probe of a cluster this script asks for an answer by probe.py, which lies beside it. At
SIGTERM or Ctrl-C the server ends, too. It needs nothing but Python.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from types import FrameType

_FOLDER = Path(__file__).resolve().parent
_LONGEST_PAUSE_S, _HEALTHY_S = 30.0, 60.0
# So many servers in a row that give no answer at all, and the next one would not either.
MOST_FAILED_STARTS = 5


@dataclass
class Supervisor:
    """Keeps one server running."""

    command: Sequence[str]  # starts it
    probe: Callable[[], bool]  # returns whether it gives an answer
    every_s: float = 10.0  # how long to wait between two probes
    failures: int = 3  # so many probes without an answer, one after the other, end it
    start_s: float = 600.0  # how long it may take until it gives the first answer
    # How long it may take to end before it is killed; a model that has died cannot be unloaded,
    # which Triton would wait for.
    stop_s: float = 10.0
    first_pause_s: float = 1.0  # how long to wait before a second start
    process: subprocess.Popen[bytes] | None = None  # the server that runs
    _is_over: bool = False

    def run(self) -> str | None:
        """Start the server again and again, until `end` is called or no server starts any more.

        Returns:
            Why no server starts; None after `end`.
        """
        pause_s, failed_starts = 0.0, 0
        while not self.is_over():
            begun = time.monotonic()
            with subprocess.Popen(self.command) as process:
                self.process = process
                has_answered, reason = self._watch(process, begun)
                process.terminate()
                try:
                    process.wait(self.stop_s)
                except subprocess.TimeoutExpired:
                    process.kill()
            if self.is_over():
                break
            failed_starts = 0 if has_answered else failed_starts + 1
            if failed_starts == MOST_FAILED_STARTS:
                return f"no server gave an answer in {failed_starts} starts: the last {reason}"
            # Each failure makes the pause longer, as the next one is likely to come soon.
            is_healthy = time.monotonic() - begun > _HEALTHY_S
            longer_s = min(max(self.first_pause_s, 2 * pause_s), _LONGEST_PAUSE_S)
            pause_s = 0.0 if is_healthy else longer_s
            print(f"supervise: the server {reason}; it starts again in {pause_s:g} s", flush=True)
            self._wait(pause_s)
        return None

    def end(self, *_: int | FrameType | None) -> None:
        """End the server, and `run` with it: a handler of signals, too."""
        self._is_over = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def is_over(self) -> bool:
        """Tell whether the server is to end."""
        return self._is_over

    def _watch(self, process: subprocess.Popen[bytes], begun: float) -> tuple[bool, str]:
        """Wait until the server has to end; return whether it gave answers, and the reason."""
        has_answered, failed = False, 0
        while not self.is_over():
            code = process.poll()
            if code is not None:
                return has_answered, f"ended with {code}"
            if self.probe():
                if not has_answered:
                    seconds = time.monotonic() - begun
                    print(f"supervise: the server answers, after {seconds:.1f} s", flush=True)
                has_answered, failed = True, 0
            elif has_answered:
                failed += 1
            if failed >= self.failures:
                return True, f"gave no answer {failed} times"
            if not has_answered and time.monotonic() - begun > self.start_s:
                return False, f"gave no answer within {self.start_s:g} s"
            self._wait(self.every_s if has_answered else min(1.0, self.every_s))
        return has_answered, "is to end"

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.is_over() and time.monotonic() < end:
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))


def main(arguments: Sequence[str]) -> str | None:
    """Supervise the command behind `--`; return why it is given up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", default="8000", help="the server's port for HTTP")
    parser.add_argument("--metrics-port", default="8002", help="the port of its metrics")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two probes")
    parser.add_argument("--failures", type=int, default=3, help="probes that fail in a row")
    parser.add_argument("command", nargs="+", help="behind --: starts the server")
    given = parser.parse_args(arguments)
    asked = [sys.executable, str(_FOLDER / "probe.py"), given.port, given.metrics_port]

    def probe() -> bool:
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    supervisor = Supervisor(given.command, probe, every_s=given.every, failures=given.failures)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, supervisor.end)
    reason = supervisor.run()
    if reason is None:
        return None
    check = f"moh-deploy bundle --check {quote(str(_FOLDER))}"
    return f"supervise: {reason}. See its log above, and try: {check}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

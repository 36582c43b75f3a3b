"""The script that starts a server again which ends, or gives no answers any more."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moh_deploy.serving.triton import supervise
from moh_deploy.serving.triton.supervise import MOST_FAILED_STARTS, Supervisor
from tests.nightly import nightly

# Notes each start, and ends as the argument says; else it runs for long.
SERVER = """
import sys, time
with open(sys.argv[1], "a") as file:
    file.write("started\\n")
if sys.argv[2:] == ["ends"]:
    sys.exit(3)
time.sleep(600)
"""


class Supervised:
    """A server that is watched, on a thread, until the test ends."""

    def __init__(self, folder: Path, probe: Callable[[int], bool], *arguments: str) -> None:
        self._notes, self._probe = folder / "starts", probe
        command = [sys.executable, "-c", SERVER, str(self._notes), *arguments]
        self.supervisor = Supervisor(
            command, self._ask, every_s=0.01, failures=2, stop_s=60, first_pause_s=0.01
        )
        self._has_enough = threading.Event()
        self._wanted = 0

    @property
    def starts(self) -> int:
        return len(self._notes.read_text().splitlines()) if self._notes.exists() else 0

    def _ask(self) -> bool:
        if self.starts >= self._wanted:
            self._has_enough.set()
        return self._probe(self.starts)

    def until(self, starts: int) -> None:
        """Watch until the server was started so often, and end it."""
        self._wanted = starts
        thread = threading.Thread(target=self.supervisor.run)
        thread.start()
        try:
            assert self._has_enough.wait(60)
        finally:
            self.supervisor.end()
            thread.join(60)
        assert not thread.is_alive()


@nightly
def test_server_that_gives_no_answer_any_more_is_started_again(tmp_path: Path, capfd):
    answers = {1: iter([False, True, False, True, False, False])}
    supervised = Supervised(tmp_path, lambda starts: next(answers.get(starts, iter([True])), False))
    supervised.until(starts=2)
    assert "gave no answer 2 times; it starts again in 0.01 s" in capfd.readouterr().out


def test_server_that_ends_is_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    Supervised(tmp_path, lambda starts: False, "ends").until(starts=2)
    assert "the server ended with 3; it starts again in 0.01 s" in capfd.readouterr().out


@pytest.mark.parametrize("answers", [(False,), (True, False)], ids=["starting", "now and then"])
def test_server_is_left_alone(tmp_path: Path, capfd, answers: tuple[bool, ...]):
    probes: list[int] = []

    def probe(starts: int) -> bool:
        probes.append(starts)
        return answers[len(probes) % len(answers)]

    supervised = Supervised(tmp_path, probe)
    thread = threading.Thread(target=supervised.supervisor.run)
    thread.start()
    while len(probes) < 20:
        time.sleep(0.01)
    supervised.supervisor.end()
    thread.join(60)
    assert set(probes) <= {0, 1}
    assert "starts again" not in capfd.readouterr().out


def test_server_that_never_starts_is_given_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    starts = tmp_path / "starts"
    command = [sys.executable, "-c", SERVER, str(starts), "ends"]
    supervisor = Supervisor(command, lambda: False, every_s=0.01, first_pause_s=0.0)
    assert supervisor.run() == "no server gave an answer in 5 starts: the last ended with 3"
    assert len(starts.read_text().splitlines()) == MOST_FAILED_STARTS
    assert capfd.readouterr().out.count("it starts again") == MOST_FAILED_STARTS - 1


@nightly
def test_damaged_bundle_ends_the_script_with_the_reason(tmp_path: Path):
    shutil.copyfile(supervise.__file__, tmp_path / "supervise.py")
    (tmp_path / "probe.py").write_text("import sys; sys.exit(1)")
    command = [sys.executable, str(tmp_path / "supervise.py"), "--every=0.01", "--", "false"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 1
    assert ran.stderr == (
        "supervise: no server gave an answer in 5 starts: the last ended with 1. See its log"
        f" above, and try: moh-deploy bundle --check {tmp_path}\n"
    )

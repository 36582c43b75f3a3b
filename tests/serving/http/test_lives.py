"""When the next worker begins, and when no more do, without starting any."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moh_deploy.errors import BackendError, PackageError
from moh_deploy.serving.http import server
from moh_deploy.serving.http.server import _Lives
from moh_deploy.serving.http.worker import FirstWord

READY = FirstWord()
BROKEN = FirstWord("it is broken.", None, PackageError.exit_code)


class Worker:
    process = SimpleNamespace(pid=7, returncode=-9)
    _is_stuck = False
    how = server._Worker.how
    error = server._Worker.error


@pytest.fixture
def log() -> list[str]:
    return []


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(server, "time", made)
    return made


def lived(lives: _Lives, clock: Clock, seconds: float) -> float:
    """Return the pause behind a worker that answered for so long."""
    worker: Any = Worker()
    lives.begins(worker)
    clock.now += seconds
    return lives.ends(worker, READY)


def test_pauses_double_behind_short_lives(clock: Clock, log: list[str]):
    lives = _Lives(log.append)
    assert [lived(lives, clock, 1) for _ in range(8)] == [0.25, 0.5, 1, 2, 4, 8, 10, 10]
    assert lived(lives, clock, 11) == 0
    assert lived(lives, clock, 1) == 0.25
    assert lives.restarts == 10
    assert log[0] == "worker 7 ended with SIGKILL; the next starts in 0.25 s (restart 1)"


def test_first_worker_that_does_not_start_is_the_end(clock: Clock, log: list[str]):
    worker: Any = Worker()
    with pytest.raises(PackageError, match="it is broken"):
        _Lives(log.append).ends(worker, BROKEN)
    with pytest.raises(BackendError, match="ended with SIGKILL before it could answer"):
        _Lives(log.append).ends(worker, None)


def test_later_ones_are_tried_five_times(clock: Clock, log: list[str]):
    worker: Any = Worker()
    lives = _Lives(log.append)
    lived(lives, clock, 1)
    assert [lives.ends(worker, BROKEN) for _ in range(4)] == [0.5, 1, 2, 4]
    assert "worker 7 did not start: it is broken." in log
    with pytest.raises(PackageError, match="it is broken"):
        lives.ends(worker, BROKEN)


def test_start_between_forgets_those_that_failed(clock: Clock, log: list[str]):
    worker: Any = Worker()
    lives = _Lives(log.append)
    lived(lives, clock, 1)
    for _ in range(3):
        for _ in range(4):
            lives.ends(worker, BROKEN)
        lived(lives, clock, 20)
    assert lives.restarts == 16

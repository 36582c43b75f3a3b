"""When the next worker begins, and when no more do, without starting any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from moh_deploy.errors import BackendError, PackageError
from moh_deploy.serving.http import server
from moh_deploy.serving.http.limits import HttpLimits
from moh_deploy.serving.http.server import serve_forever
from moh_deploy.serving.http.worker import WORD_JSON, FirstWord, WorkerTask
from moh_deploy.serving.settings import ServingSettings

READY = FirstWord()
BROKEN = FirstWord("it is broken.", None, PackageError.exit_code)
TASK = WorkerTask("model", ServingSettings("m"), HttpLimits(), listener=0, parent=0)


@dataclass
class Life:
    """The life of a worker: its first word, and how long it answered."""

    word: FirstWord | None
    seconds: float = 0.0


@dataclass
class Supervised:
    """The pauses between workers, and the lines about them."""

    pauses: list[float]
    log: list[str]


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Supervised]:
    """Serve by workers of these lives; the last is asked to end."""
    now, seen = SimpleNamespace(seconds=0.0), Supervised([], [])

    def select(*arguments: object) -> tuple[list[object], ...]:
        seen.pauses.append(arguments[3])  # type: ignore[arg-type]
        return [], [], []

    def run(*lives: Life) -> Supervised:
        left = iter(lives)

        class Worker(server._Worker):
            """A worker without a process."""

            def __init__(self, *_: object) -> None:
                self.pid, self.has_ended, self._is_stuck = 7, False, False
                self._process = SimpleNamespace(returncode=-9)  # type: ignore[assignment]
                self._steps = self._live(next(left, None))
                self._received = b""

            def _live(self, life: Life | None) -> Iterator[bool]:
                if life is None:
                    yield True
                    return
                self._received = (
                    b"" if life.word is None else WORD_JSON.dump_json(life.word) + b"\n"
                )
                yield False
                now.seconds += life.seconds
                self.has_ended = True
                yield False

            def wait(self, wake: object) -> bool:
                return next(self._steps)

            def kill_if_stuck(self) -> None:
                pass

            def end(self, wake: object, timeout_s: float) -> None:
                pass

        monkeypatch.setattr(server, "_Worker", Worker)
        monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: now.seconds))
        monkeypatch.setattr(server, "select", SimpleNamespace(select=select))
        serve_forever(TASK, host="127.0.0.1", port=0, on_ready=lambda _: None, log=seen.log.append)
        return seen

    return run


def test_pauses_double_behind_short_lives(supervise: Callable[..., Supervised]):
    seen = supervise(*[Life(READY, 1)] * 8, Life(READY, 11), Life(READY, 1))
    assert seen.pauses == [0.25, 0.5, 1, 2, 4, 8, 10, 10, 0, 0.25]
    assert seen.log[0] == "worker 7 ended with SIGKILL; the next starts in 0.25 s (restart 1)"
    assert seen.log[1].startswith("worker 7 answers, ")


@pytest.mark.parametrize(
    ("word", "kind", "message"),
    [
        (BROKEN, PackageError, "it is broken"),
        (None, BackendError, "ended with SIGKILL before it could answer"),
    ],
    ids=["broken", "no word"],
)
def test_first_worker_that_does_not_start_is_the_end(
    supervise: Callable[..., Supervised], word: FirstWord, kind: type[Exception], message: str
):
    with pytest.raises(kind, match=message):
        supervise(Life(word))


def test_later_ones_are_tried_five_times(supervise: Callable[..., Supervised]):
    assert supervise(Life(READY, 1), *[Life(BROKEN)] * 4).pauses == [0.25, 0.5, 1, 2, 4]
    with pytest.raises(PackageError, match="it is broken"):
        supervise(Life(READY, 1), *[Life(BROKEN)] * 5)


def test_start_between_forgets_those_that_failed(supervise: Callable[..., Supervised]):
    lives = [*[Life(BROKEN)] * 4, Life(READY, 20)]
    seen = supervise(Life(READY, 1), *lives * 3)
    assert len(seen.pauses) == 16
    assert "worker 7 did not start: it is broken." in seen.log

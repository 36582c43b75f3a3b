from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import uvicorn

from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.package import TensorInfo
from moh_deploy.serving.http import server
from moh_deploy.serving.http.queue import BatchingQueue, HttpLimits, Refusal
from moh_deploy.serving.http.server import serve_forever
from moh_deploy.serving.http.worker import (
    HUNG,
    TASK_JSON,
    UNANSWERED,
    WORD_JSON,
    FirstWord,
    WorkerTask,
    _check_dims,
    _code_at_end,
    _Server,
    session_threads,
)
from moh_deploy.serving.served_model import Reply, Tensors
from moh_deploy.serving.settings import ServingSettings
from tests.handmade_package import MANIFEST
from tests.nightly import sampled


@pytest.mark.parametrize(
    ("instances", "threads", "of_session"), [(1, 4, 4), (4, 1, 1), (2, 2, 3), (3, 4, 10)]
)
def test_callers_and_the_threads_that_they_share_are_instances_by_threads(
    instances: int, threads: int, of_session: int
):
    settings = ServingSettings("m", instances=instances, threads=threads)
    assert session_threads(settings) == of_session
    assert instances + of_session - 1 == instances * threads


def test_task_and_word_survive_their_way_to_another_process():
    settings = ServingSettings("m", max_delay_ms=0.5, shadow="/a b/'c'")
    limits = HttpLimits(longest={"seq": 7}, read_timeout_s=0.25)
    task = WorkerTask("/models/ä", settings, limits, listener=3, parent=4, restarts=2)
    assert TASK_JSON.validate_json(TASK_JSON.dump_json(task)) == task
    for word in (FirstWord(), FirstWord("no\nway", "a hint", 5), FirstWord(alone_because="x")):
        line = WORD_JSON.dump_json(word)
        assert b"\n" not in line
        assert WORD_JSON.validate_json(line) == word


def test_limit_is_of_a_dimension_beside_axes_that_are_no_expression():
    shape = ("batch", "past + seq")
    manifest = replace(MANIFEST, inputs=(*MANIFEST.inputs, TensorInfo("mask", "int64", shape)))
    _check_dims({"batch": 7}, manifest)
    _check_dims({"past + seq": 7}, manifest)
    with pytest.raises(ConfigError, match=r"longest is of 'total', but .*'past \+ seq'"):
        _check_dims({"total": 7}, manifest)


def _queue(run: Callable[..., Reply], *, hung_s: float) -> BatchingQueue:
    return BatchingQueue(
        run, None, instances=1, max_batch=1, max_delay_s=0.0, max_waiting=9, hung_s=hung_s
    )


def test_server_ends_where_a_run_hangs_and_what_waits_behind_it_is_refused(capsys):
    gate = threading.Event()

    def hangs(inputs: Tensors, *_: object) -> Reply:
        assert gate.wait(60)
        return Reply(inputs, "kernels")

    queue = _queue(hangs, hung_s=0.02)
    asked = [queue.submit({"x": np.zeros(1)}) for _ in range(2)]
    parent, other = socket.socketpair()
    with parent, other:
        server = _Server(uvicorn.Config(lambda: None), queue, parent, FirstWord())
        asyncio.run(_until_it_exits(server))
    assert (server.has_hung, server.should_exit) == (True, True)
    assert "a run has not ended within 0.04 s: this worker ends" in capsys.readouterr().err
    with pytest.raises(Refusal, match="shutting down"):
        asked[1].result(60)
    gate.set()
    assert asked[0].result(60).rung == "kernels"
    assert queue.close(timeout_s=60)


def test_worker_whose_parent_is_gone_ends():
    queue = _queue(lambda inputs, *_: Reply(inputs, "kernels"), hung_s=60.0)
    parent, other = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))

    async def serve_until_the_parent_is_gone() -> None:
        config = uvicorn.Config(lambda: None, lifespan="off", log_config=None)
        server = _Server(config, queue, parent, FirstWord())
        serving = asyncio.create_task(server.serve([listener]))
        async with asyncio.timeout(60):
            while not server.started:
                await asyncio.sleep(0.001)
            other.close()
            await serving

    with parent, other, listener:
        asyncio.run(serve_until_the_parent_is_gone())
    assert queue.close(timeout_s=60)


async def _until_it_exits(server: _Server) -> None:
    living = asyncio.create_task(server._live())
    async with asyncio.timeout(60):
        while not server.should_exit:
            await asyncio.sleep(0.001)
    living.cancel()


@sampled(2)
@pytest.mark.parametrize(
    ("has_hung", "has_cut_off", "is_answered", "code", "waits"),
    [
        (False, False, True, 0, True),
        (False, False, False, UNANSWERED, True),
        (False, True, True, UNANSWERED, False),
        (True, False, True, HUNG, False),
    ],
)
def test_who_has_cut_off_requests_waits_for_none(
    has_hung: bool, has_cut_off: bool, is_answered: bool, code: int, waits: bool
):
    server, queue = Mock(_Server, has_hung=has_hung, has_cut_off=has_cut_off), Mock(BatchingQueue)
    queue.close.return_value = is_answered
    assert _code_at_end(server, queue, 3.0) == code
    assert queue.close.called == waits


# When the next worker begins, and when no more do, without starting any.


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

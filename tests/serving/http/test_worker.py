from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import uvicorn

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.serving import Reply
from moh_deploy.serving.http.limits import HttpLimits, Refusal
from moh_deploy.serving.http.queue import BatchingQueue
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
from moh_deploy.serving.served_model import Tensors
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


def test_server_ends_where_a_run_hangs_and_what_waits_behind_it_is_refused(
    capsys: pytest.CaptureFixture[str],
):
    gate = threading.Event()

    def hangs(inputs: Tensors, *_: object) -> Reply:
        assert gate.wait(60)
        return Reply(inputs, "kernels")

    queue = BatchingQueue(
        hangs, None, instances=1, max_batch=1, max_delay_s=0.0, max_waiting=9, hung_s=0.02
    )
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

from __future__ import annotations

import pytest

from moh_deploy.serving.http.limits import HttpLimits
from moh_deploy.serving.http.worker import FirstWord, WorkerTask, session_threads
from moh_deploy.serving.settings import ServingSettings


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
    assert WorkerTask.of_json(task.to_json()) == task
    for word in (FirstWord(), FirstWord("no\nway", "a hint", 5), FirstWord(alone_because="x")):
        assert word.to_line().count(b"\n") == 1
        assert FirstWord.of_line(word.to_line()) == word

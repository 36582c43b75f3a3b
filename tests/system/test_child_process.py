from __future__ import annotations

import pytest

from moh_deploy.errors import BackendError
from moh_deploy.system.child_process import json_from


def test_object_is_returned_however_the_process_ends():
    assert json_from(["-c", "print('{\"a\": 1}'); raise SystemExit(3)"], what="it") == {"a": 1}


def test_task_is_what_it_reads():
    code = "import sys; print(sys.stdin.read() or '{}')"
    assert json_from(["-c", code], what="it", task='{"b": 2}') == {"b": 2}
    assert json_from(["-c", code], what="it") == {}


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import sys; sys.exit('no memory')", "status 1: no memory"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV: "),
        ("print('not JSON')", "status 0: "),
    ],
)
def test_process_without_an_answer_says_how_it_ended(code: str, how: str):
    with pytest.raises(BackendError) as ended:
        json_from(["-c", code], what="the process that adds")
    assert ended.value.message == f"the process that adds ended with {how}"

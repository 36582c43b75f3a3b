import re

import pytest

from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.machine import Importable, imported
from tests.fakes import Fakes
from tests.nightly import nightly


def test_an_exception_is_the_reason():
    assert ask(imported, "json", "email.message") == Importable()
    found = ask(imported, "json", "no_such_module")
    assert found == Failed("ModuleNotFoundError: No module named 'no_such_module'")


ABORTING = "import os\nos.write(2, b'no such GPU\\n')\nos.abort()\n"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import ctypes\nctypes.string_at(0)\n", "^it crashed: the process ended with SIGSEGV: "),
        (ABORTING, 'ended with SIGABRT: no such GPU; .*broken.py", line 3'),
        ("import atexit, os\natexit.register(os.abort)\n", "SIGABRT"),  # after its answer
    ],
    ids=["crash", "abort", "late"],
)
def test_a_crash_is_an_answer_that_says_where(fakes: Fakes, code: str, why: str):
    fakes.module("broken", code)
    found = ask(imported, "broken")
    assert isinstance(found, Failed)
    assert re.search(why, found.why)


def test_what_prints_does_not_disturb_the_answer(fakes: Fakes):
    fakes.module("chatty", "print('{}' * 3)\nimport os\nos.write(1, b'\\xff')\n")
    assert ask(imported, "chatty") == Importable()


@nightly
def test_one_that_never_answers_is_left(fakes: Fakes):
    fakes.module("sleeping", "import time\ntime.sleep(600)\n")
    found = ask(imported, "sleeping", timeout_s=1.0)
    assert found == Failed("it did not answer within 1 s")


def test_an_error_of_ours_keeps_its_next_step(fakes: Fakes):
    fakes.module(
        "refusing",
        "from moh_deploy.errors import BackendError\n"
        "raise BackendError('it is too old', hint='update it')\n",
    )
    assert ask(imported, "refusing") == Failed("it is too old", "update it")

from __future__ import annotations

from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.machine import Importable, imported
from tests.fakes import Fakes
from tests.nightly import nightly


def test_what_is_there_is_imported():
    assert ask(imported, "json", "email.message") == Importable()


def test_an_exception_is_the_reason():
    found = ask(imported, "json", "no_such_module")
    assert found == Failed("ModuleNotFoundError: No module named 'no_such_module'")


def test_a_crash_is_an_answer_that_says_where(fakes: Fakes):
    fakes.module("crashing", "import ctypes\nctypes.string_at(0)\n")
    found = ask(imported, "crashing")
    assert isinstance(found, Failed)
    assert found.why.startswith("it crashed: the process ended with SIGSEGV: ")


def test_an_abort_says_what_the_library_said(fakes: Fakes):
    fakes.module("aborting", "import os\nos.write(2, b'no such GPU\\n')\nos.abort()\n")
    found = ask(imported, "aborting")
    assert isinstance(found, Failed)
    assert "ended with SIGABRT: no such GPU; " in found.why
    assert 'aborting.py", line 3' in found.why


def test_what_crashes_after_its_answer_is_broken(fakes: Fakes):
    fakes.module("late", "import atexit, os\natexit.register(os.abort)\n")
    found = ask(imported, "late")
    assert isinstance(found, Failed)
    assert "SIGABRT" in found.why


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

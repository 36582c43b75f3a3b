from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.system import isolate
from moh_deploy.system.isolate import isolated
from tests.system.isolated_tasks import chat, die, fill, refuse, work


def test_answer_is_what_the_function_returns():
    found = isolated(divmod, 17, 5)
    assert (found.answer, found.return_code) == ((3, 2), 0)
    assert found.required("it") == (3, 2)


def test_process_is_another_one():
    assert isolated(os.getpid).answer != os.getpid()


def test_error_keeps_its_kind_and_its_hint():
    found = isolated(refuse, "x")
    with pytest.raises(ConfigError, match=r"x is wrong\.") as refused:
        found.required("it")
    assert refused.value.hint == "Right it."


def test_other_exception_ends_the_process_with_its_traceback():
    found = isolated(divmod, 1, 0)
    assert found.exception is not None
    assert found.exception.startswith("ZeroDivisionError: ")
    with pytest.raises(BackendError, match=r"(?s)^the division ended with status 1: .*Traceback"):
        found.required("the division")


def test_process_without_an_answer_says_how_it_ended():
    found = isolated(die, "no memory")
    assert (found.answer, found.return_code, found.said) == (None, -signal.SIGKILL, "no memory")
    with pytest.raises(BackendError) as ended:
        found.required("the process that adds")
    assert ended.value.message == "the process that adds ended with SIGKILL: no memory"
    assert not list(Path(tempfile.gettempdir()).glob("dying-*"))


def test_what_it_prints_is_no_answer():
    found = isolated(chat)
    assert found.answer == 7
    assert "{}" in found.said


def test_one_that_takes_too_long_is_ended():
    found = isolated(time.sleep, 600, timeout_s=1.0)
    assert (found.answer, found.return_code, found.how()) == (None, None, "a timeout")


def test_last_step_is_known():
    found = isolated(work, "adding", show_steps=False)
    assert (found.how(), found.step) == ("SIGSEGV", "adding")


def test_full_disk_is_said_by_whoever_still_can(monkeypatch: pytest.MonkeyPatch):
    """The other process has no room for an answer: it ends with a status of its own."""
    with pytest.raises(PackageError, match=r"disk full while writing .*moh-deploy-isolated"):
        isolated(fill)

    def run(folder: Path, *_: object, **__: object) -> int:
        with pytest.raises(SystemExit) as ended:
            isolate.carry_out(folder)
        return int(str(ended.value.code))

    monkeypatch.setattr(isolate, "_run", run)
    with pytest.raises(PackageError, match="disk full"):
        isolated(fill)


def test_process_that_does_not_start_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert isolated(os.getpid).how() == "status 1"

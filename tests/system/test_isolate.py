import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.system import isolate
from moh_deploy.system.isolate import how_it_ended, isolated, started_early
from tests.nightly import nightly
from tests.system.isolated_tasks import (
    chat,
    die,
    fail_to_get_ready,
    fill,
    get_ready,
    is_ready,
    refuse,
    work,
)


def test_answer_is_what_the_function_returns():
    found = isolated(divmod, 17, 5)
    assert (found.answer, found.return_code) == ((3, 2), 0)
    assert found.required("it") == (3, 2)


def test_process_is_another_one():
    assert isolated(os.getpid).answer != os.getpid()


def test_a_module_in_the_working_directory_is_not_imported(tmp_path: Path, monkeypatch):
    (tmp_path / "pickle.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    assert isolated(divmod, 17, 5).required("it") == (3, 2)


def test_error_keeps_its_kind_and_its_hint():
    found = isolated(refuse, "x")
    with pytest.raises(ConfigError, match=r"x is wrong\.") as refused:
        found.required("it")
    assert refused.value.hint == "Right it."


def test_other_exception_ends_the_process_with_its_traceback():
    found = isolated(divmod, 1, 0)
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


@pytest.mark.parametrize(("code", "said"), [(3, "status 3"), (-11, "SIGSEGV"), (-35, "signal 35")])
def test_what_ended_a_process_has_a_name_or_a_number(code: int, said: str):
    assert how_it_ended(code) == said


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

    def run(folder: Path, _: object) -> int:
        with pytest.raises(SystemExit) as ended:
            isolate.carry_out(folder)
        return int(str(ended.value.code))

    monkeypatch.setattr(isolate, "_started", lambda folder, **_: folder)
    monkeypatch.setattr(isolate, "_waited", run)
    with pytest.raises(PackageError, match="disk full"):
        isolated(fill)


def test_process_that_does_not_start_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert isolated(os.getpid).how() == "status 1"


def test_process_that_was_started_early_gets_ready_and_does_the_task():
    with started_early(get_ready) as early:
        found = isolated(is_ready, early=early)
    assert found.return_code == 0
    assert found.said == "ready"
    assert found.answer is not None
    ready, temporary = found.answer
    assert ready == "yes"
    # What it leaves in temporary files goes with the folder of its task.
    assert not Path(temporary).exists()
    assert "moh-deploy-isolated" in temporary


@nightly
def test_early_process_fails_like_another():
    with started_early(get_ready) as early, pytest.raises(ConfigError, match=r"x is wrong\."):
        isolated(refuse, "x", early=early).required("it")
    with started_early(get_ready) as early:
        assert isolated(die, "no memory", early=early).how() == "SIGKILL"
    with started_early(get_ready) as early:
        assert isolated(time.sleep, 600, timeout_s=1.0, early=early).how() == "a timeout"


def test_process_that_cannot_get_ready_says_why():
    with started_early(fail_to_get_ready) as early:
        early.process.wait()  # what is handed over finds nobody
        found = isolated(is_ready, early=early)
    with pytest.raises(BackendError, match=r"(?s)ended with status 1: .*no such library"):
        found.required("the process")


def test_process_that_nothing_was_called_in_ends_with_the_block():
    with pytest.raises(KeyboardInterrupt), started_early(get_ready) as early:
        raise KeyboardInterrupt
    assert early.process.returncode is not None


def test_process_that_waits_ends_when_the_other_one_is_gone():
    with started_early(get_ready) as early:
        early.process.stdin.close()  # as the end of the process does
        assert early.process.wait() == 0


def test_the_command_collects_rarely():
    code = "import gc; from moh_deploy.__main__ import _load; _load(); print(gc.get_threshold()[0])"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    assert int(said) == 10_000


def test_its_own_processes_do_so_too():
    found = isolated(gc.get_threshold)
    assert found.answer[0] == 10_000

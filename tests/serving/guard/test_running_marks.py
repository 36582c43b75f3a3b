from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving import ServingSettings, open_served
from moh_deploy.serving.guard.guard_io import RunningMarks, died_in
from tests.handmade_package import vectors, write_package

pytestmark = pytest.mark.usefixtures("warm_processes")

_DIES = """
import os, signal, sys
from pathlib import Path
from moh_deploy.serving.guard.guard_io import RunningMarks

marks = RunningMarks(Path(sys.argv[1]), ["first", "functions"])
with marks.during(1):
    pass
with marks.during(int(sys.argv[2])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die(log: Path, rung: int) -> None:
    """Let a process die while it runs on a rung."""
    ended = subprocess.run([sys.executable, "-c", _DIES, str(log), str(rung)], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_a_process_that_died_has_left_the_rung_that_was_running(tmp_path: Path):
    log = tmp_path / "audit[a].jsonl"  # a name is no pattern
    die(log, 0)
    assert died_in(log) == ("first",)
    assert died_in(log) == ()  # it is told once


def test_a_run_that_raises_has_ended(tmp_path: Path):
    marks = RunningMarks(tmp_path / "log", ["a"])
    with pytest.raises(ZeroDivisionError), marks.during(0):
        raise ZeroDivisionError
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"a\n\n\0\0\0\0"
    marks.close()


def test_runs_at_the_same_time_are_counted(tmp_path: Path):
    marks = RunningMarks(tmp_path / "log", ["a", "b"])
    (file,) = tmp_path.iterdir()
    with marks.during(1), marks.during(1):
        with marks.during(1):
            pass
        assert file.read_bytes().endswith(b"\n\n\0\0\0\0\2\0\0\0")
    marks.close()


def test_a_process_that_ends_in_order_leaves_nothing(tmp_path: Path):
    marks = RunningMarks(tmp_path / "log", ["a"])
    with marks.during(0):
        pass
    marks.close()
    assert list(tmp_path.iterdir()) == []


def test_what_lives_is_left_alone(tmp_path: Path):
    marks = RunningMarks(tmp_path / "log", ["a"])
    with marks.during(0):
        assert died_in(tmp_path / "log") == ()  # not even by this very process
        assert len(list(tmp_path.iterdir())) == 1
    marks.close()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="the folder of the audit log"):
        RunningMarks(tmp_path / "missing" / "log", ["a"])


def test_a_full_disk_refuses_the_start_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def is_full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    package = write_package(tmp_path / "package")
    (tmp_path / "logs").mkdir()
    settings = ServingSettings("m", guard=True, audit_log=str(tmp_path / "logs" / "audit.jsonl"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", is_full)
        with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
            open_served(PackageDir(package.root), settings)
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_log_that_cannot_be_opened_leaves_no_mark(tmp_path: Path):
    package = write_package(tmp_path / "package")
    log = tmp_path / "logs" / "audit.jsonl"
    log.mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be written: Is a directory"):
        open_served(PackageDir(package.root), ServingSettings("m", guard=True, audit_log=str(log)))
    assert list(log.parent.iterdir()) == [log]


def test_without_a_log_there_are_no_marks():
    marks = RunningMarks(None, ["a"])
    with marks.during(0):
        assert died_in(None) == ()
    marks.close()


@pytest.mark.parametrize(("rung", "serves"), [(0, "functions"), (1, "first")])
def test_a_rung_that_took_the_process_along_does_not_serve_at_once(
    tmp_path: Path, rung: int, serves: str
):
    package = write_package(tmp_path / "package")
    (tmp_path / "policy.yaml").write_text(
        "rungs: [{kind: functions, name: first}, {kind: functions}]"
    )
    log = tmp_path / "audit.jsonl"
    die(log, rung)
    settings = ServingSettings(
        "m", guard=True, policy=str(tmp_path / "policy.yaml"), audit_log=str(log)
    )
    served = open_served(PackageDir(package.root), settings)
    assert served.answer(vectors().inputs).rung == serves
    served.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    # The last rung is never closed for it: there is nothing below.
    assert [one["reason"] for one in lines] == (["process died"] if rung == 0 else [])
    assert not list(tmp_path.glob("*.running-*"))

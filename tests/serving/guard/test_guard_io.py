import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.guard import guard_io
from moh_deploy.serving.guard.guard_io import AuditLog, RunningMarks, died_in
from moh_deploy.serving.guard.state_machine import Transition
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly

CHANGE = Transition("kernels", "open", "kernels", "functions", "latency", {"p99_ms": 12.5})


def lines_of(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_transition_is_a_line_and_a_log_goes_on_where_it_ended(tmp_path: Path):
    infinite = replace(CHANGE, evidence={"ratio": float("inf")})
    for change, seconds in ((CHANGE, 1e9), (infinite, 1e9 + 0.25)):
        log = AuditLog(tmp_path / "audit.jsonl")
        log.add(change, seconds)
        log.close()
    first, second = lines_of(tmp_path / "audit.jsonl")
    assert first == {
        "time": "2001-09-09T01:46:40.000Z",
        "from": "kernels",
        "to": "functions",
        "reason": "latency",
        "rung": "kernels",
        "state": "open",
        "evidence": {"p99_ms": 12.5},
    }
    # JSON has no such number.
    assert second == first | {
        "time": "2001-09-09T01:46:40.250Z",
        "evidence": {"ratio": "Infinity"},
    }


_APPEND = """
import sys
from pathlib import Path
from moh_deploy.serving.guard.guard_io import AuditLog
from moh_deploy.serving.guard.state_machine import Transition

log = AuditLog(Path(sys.argv[1]))
for number in range(300):
    log.add(Transition("r" * 500, "open", "a", "b", "drift", {"number": number}), 0)
"""


@nightly
@pytest.mark.usefixtures("warm_processes")
def test_lines_of_several_processes_do_not_mix(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    command = [sys.executable, "-c", _APPEND, str(path)]
    others = [subprocess.Popen(command) for _ in range(2)]
    assert [other.wait() for other in others] == [0, 0]
    lines = lines_of(path)
    assert len(lines) == 600
    assert {len(item["rung"]) for item in lines} == {500}


def test_a_log_that_cannot_be_written_is_refused_at_once(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        AuditLog(tmp_path / "missing" / "audit.jsonl")


def test_a_line_that_the_disk_takes_a_part_of_is_said_and_the_next_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    room, write = [5], os.write

    def until_full(file: int, content: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(file, content[: room[0]])
        room[0] -= written
        return written

    log = AuditLog(tmp_path / "audit.jsonl")
    monkeypatch.setattr(guard_io.os, "write", until_full)
    log.add(CHANGE, 0)
    said = capsys.readouterr().err
    assert "cannot be written: No space left on device" in said
    assert json.loads(said.split("its line is ")[1])["reason"] == "latency"
    room[0] = 1000
    log.add(CHANGE, 0)
    torn, whole = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert len(torn) == 5
    assert json.loads(whole)["reason"] == "latency"


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


def test_a_full_disk_refuses_the_start_and_leaves_no_file(tmp_path: Path, monkeypatch):
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
    # The last rung is never closed for it: there is nothing below.
    assert [item["reason"] for item in lines_of(log)] == (["process died"] if rung == 0 else [])
    assert not list(tmp_path.glob("*.running-*"))

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard import guard_io
from moh_deploy.serving.guard.guard_io import AuditLog
from moh_deploy.serving.guard.state_machine import Transition
from tests.nightly import nightly

CHANGE = Transition("kernels", "open", "kernels", "functions", "latency", {"p99_ms": 12.5})


def test_a_transition_is_a_line(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log.add(CHANGE, 1e9)
    log.add(CHANGE, 1e9 + 0.25)
    log.close()
    first, second = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert first == {
        "time": "2001-09-09T01:46:40.000Z",
        "from": "kernels",
        "to": "functions",
        "reason": "latency",
        "rung": "kernels",
        "state": "open",
        "evidence": {"p99_ms": 12.5},
    }
    assert second["time"] == "2001-09-09T01:46:40.250Z"


def test_a_log_goes_on_where_it_ended(tmp_path: Path):
    for _ in range(2):
        log = AuditLog(tmp_path / "audit.jsonl")
        log.add(CHANGE, 0)
        log.close()
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 2


_APPEND = """
import sys
from pathlib import Path
from moh_deploy.serving.guard import guard_io
from moh_deploy.serving.guard import guard_io
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
    assert [one.wait() for one in others] == [0, 0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 600
    assert {len(one["rung"]) for one in lines} == {500}


def test_numbers_that_json_lacks_are_written_as_text(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log.add(Transition("a", "open", "a", "b", "drift", {"ratio": float("inf")}), 0)
    assert json.loads((tmp_path / "audit.jsonl").read_text())["evidence"] == {"ratio": "Infinity"}


def test_a_log_that_cannot_be_written_is_refused_at_once(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        AuditLog(tmp_path / "missing" / "audit.jsonl")


def test_a_line_that_the_disk_has_no_room_for_is_said_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def is_full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = AuditLog(tmp_path / "audit.jsonl")
    monkeypatch.setattr(guard_io.os, "write", is_full)
    log.add(CHANGE, 0)
    said = capsys.readouterr().err
    assert "cannot be written: No space left on device" in said
    assert json.loads(said.split("its line is ")[1])["reason"] == "latency"


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
    assert json.loads(said.split("its line is ")[1])["reason"] == "latency"
    room[0] = 1000
    log.add(CHANGE, 0)
    torn, whole = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert len(torn) == 5
    assert json.loads(whole)["reason"] == "latency"

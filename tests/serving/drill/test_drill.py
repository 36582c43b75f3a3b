"""What a drill reads in the audit log of the server that it breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.serving.drill.drill import _Log
from moh_deploy.serving.guard.guard_io import AuditLog
from moh_deploy.serving.guard.state_machine import Transition
from tests.nightly import sampled

CHANGE = Transition("kernels", "open", "kernels", "functions", "latency", {"p99_ms": 12.5})


def test_what_a_guard_appends_is_read(tmp_path: Path):
    log = _Log(tmp_path / "audit.jsonl")
    assert log.is_calm("kernels")
    AuditLog(tmp_path / "audit.jsonl").add(CHANGE, 1e9)
    assert not log.is_calm("kernels")
    assert log.trip is not None
    assert (log.trip.time.timestamp(), log.trip.reason) == (1e9, "latency")


@sampled(2)
@pytest.mark.parametrize("entry", [{"level": "info"}, {"time": "yesterday", "level": "info"}])
def test_a_line_that_no_guard_wrote_is_refused(tmp_path: Path, entry: dict[str, str]):
    path = tmp_path / "app.jsonl"
    log = _Log(path)
    path.write_text(json.dumps(entry) + "\n")
    with pytest.raises(ConfigError, match="a line that no guard wrote"):
        log.is_calm("kernels")

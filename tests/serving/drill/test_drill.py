"""What a drill reads in the audit log of the server that it breaks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.serving.drill.drill import NOTHING, DrillReport, FaultDrill, _Log
from moh_deploy.serving.guard.guard_io import AuditLog
from moh_deploy.serving.guard.state_machine import Transition
from tests.kernel_library import NO_KERNELS
from tests.nightly import sampled

CHANGE = Transition("kernels", "open", "kernels", "functions", "latency", {"p99_ms": 12.5})


def test_what_a_guard_appends_is_read(tmp_path: Path):
    log = _Log(tmp_path / "audit.jsonl")
    assert log.is_calm("kernels")
    AuditLog(tmp_path / "audit.jsonl").add(CHANGE, 1e9)
    assert not log.is_calm("kernels")
    assert (log.trip.time.timestamp(), log.trip.reason) == (1e9, "latency")


@sampled(2)
@pytest.mark.parametrize("entry", [{"level": "info"}, {"time": "yesterday", "level": "info"}])
def test_a_line_that_no_guard_wrote_is_refused(tmp_path: Path, entry: dict[str, str]):
    path = tmp_path / "app.jsonl"
    log = _Log(path)
    path.write_text(json.dumps(entry) + "\n")
    with pytest.raises(ConfigError, match="a line that no guard wrote"):
        log.is_calm("kernels")


BEFORE = FaultDrill(NOTHING, 100, 0, 0, (), None, None, None, False, {"kernels": 100})
NAN = FaultDrill(
    "nan", 200, 0, 0, (), 0.1, 1.5, "non-finite outputs", True, {"kernels": 20, "functions": 180}
)


def report(*faults: FaultDrill, before: FaultDrill = BEFORE) -> DrillReport:
    return DrillReport(
        subject="package p",
        server="a server",
        policy="a policy",
        clients=2,
        seconds=1.0,
        before=before,
        faults=faults,
        kernels=NO_KERNELS,
    )


def test_a_guard_holds_that_lets_nothing_wrong_out_and_comes_back():
    held = report(NAN)
    assert held.passed
    assert held.failure is None
    assert held.document().verdict.word == "HELD"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"wrong": 2}, "nan: 2 wrong answers got out"),
        ({"seconds_to_return": None}, "did not come back in time"),
        ({"reason": None, "moved": False}, "did not notice it"),
    ],
)
def test_what_did_not_hold_is_said(changes: dict[str, object], why: str):
    failed = report(replace(NAN, **changes))
    assert not failed.passed
    assert why in str(failed.failure)
    assert [case.outcome for case in failed.document().suites[0].cases] == ["failure", "failure"]


def test_a_rung_that_never_left_need_not_come_back():
    assert report(replace(NAN, fault="drift", moved=False, seconds_to_return=None)).passed


@pytest.mark.parametrize("found", [None, 0.5])
def test_what_cannot_be_seen_is_said_and_not_judged(found: float | None):
    unseen = report(replace(NAN, fault="wrong", wrong=50, seconds_to_trip=found))
    assert unseen.passed
    (sentence,) = unseen.document().findings
    assert "50 of 200 answers got out" in sentence
    assert ("Nothing found it" in sentence) == (found is None)


@pytest.mark.parametrize(
    "before", [replace(BEFORE, requests=0), replace(BEFORE, wrong=1), replace(BEFORE, failed=1)]
)
def test_a_load_that_fails_without_a_fault_proves_nothing(before: FaultDrill):
    assert not report(NAN, before=before).passed


def test_failed_requests_are_counted_and_not_judged():
    with_failures = report(replace(NAN, failed=3, failures=("503",)))
    assert with_failures.passed
    assert with_failures.document().facts[1].value == "3"
    assert with_failures.to_json()["faults"][0]["failures"] == ["503"]

from __future__ import annotations

from dataclasses import replace

import pytest

from moh_deploy.serving.drill.drill import NOTHING, DrillReport, FaultDrill
from tests.kernel_library import NO_KERNELS

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

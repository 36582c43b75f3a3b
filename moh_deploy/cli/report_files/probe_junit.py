"""Edge cases as JUnit XML: what did not run is skipped, with the reason, never passed."""

from __future__ import annotations

from moh_deploy.report.junit_document import Outcome, TestCase, TestSuite, junit_document
from moh_deploy.validate.edge_cases.case_result import CaseResult, Status
from moh_deploy.validate.edge_cases.report import REFERENCE, ProbeReport

_OUTCOMES: dict[Status, Outcome] = {
    "passed": "passed",
    "failed": "failure",
    "not applicable": "skipped",
    "not run": "skipped",
}


def probe_junit(report: ProbeReport, subject: str) -> str:
    """Return the report on a package as JUnit XML."""
    verdict: Outcome = "passed" if report.passed else "failure"
    said = f"{report.count('passed')} passed" if report.passed else report.reasons[0]
    cases = (TestCase("probe", "verdict", verdict, said), *map(_case, report.results))
    facts = {
        "reference": REFERENCE,
        "policy": report.policy,
        "kernels": report.kernels.describe(),
    }
    return junit_document("probe", [TestSuite(subject, cases, tuple(facts.items()))])


def _case(result: CaseResult) -> TestCase:
    outcome = _OUTCOMES[result.status]
    detail = f"{result.status}: {result.detail}" if outcome == "skipped" else result.detail
    return TestCase(result.kind, f"{result.case} [{result.place}]", outcome, detail)

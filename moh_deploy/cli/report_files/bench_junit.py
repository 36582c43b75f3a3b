"""A measurement as JUnit XML: a test case for every gate, package and set of inputs.

Without a gate or a baseline file nothing could have failed, and the verdict is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moh_deploy.perf.bench.report import gate_text
from moh_deploy.report.baseline.text import ratchet_suite
from moh_deploy.report.junit_document import Outcome, TestCase, TestSuite, junit_document

if TYPE_CHECKING:
    from moh_deploy.perf.bench.report import BenchReport


def bench_junit_xml(report: BenchReport, subject: str) -> str:
    """Return the report on some packages as JUnit XML."""
    facts = {"machine": report.machine, "runtime": report.runtime}
    facts["kernels"] = report.kernels.describe()
    suites = [TestSuite(subject, tuple(_cases(report)), tuple(facts.items()))]
    if report.ratchet is not None:
        suites.append(ratchet_suite(report.ratchet))
    return junit_document("bench", suites)


def _cases(report: BenchReport) -> Iterator[TestCase]:
    yield _verdict(report)
    for index, one in enumerate(report.gates, start=1):
        # The same gate may be asked for twice, and a name must not.
        name = f"{index}: {one.gate} for {one.contestant} on {one.inputs} inputs"
        outcome: Outcome = "passed" if one.passed else "failure"
        yield TestCase("gates", name, outcome, gate_text(one))


def _verdict(report: BenchReport) -> TestCase:
    if report.failure is not None:
        return TestCase("bench", "verdict", "failure", report.failure.message)
    if report.passed is None:
        return TestCase("bench", "verdict", "skipped", "There is no gate: nothing could fail.")
    held = f"gates that hold: {len(report.gates)}" if report.gates else "nothing is worse"
    return TestCase("bench", "verdict", "passed", held)

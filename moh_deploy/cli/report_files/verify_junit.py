"""A parity report as JUnit XML: a test case for every output and layer, and one for the verdict.

Every comparison with another reference is a test suite, and so is that with a baseline file.

What was measured and not judged is skipped, with the reason; what could not be compared failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moh_deploy.report.baseline.text import ratchet_suite
from moh_deploy.report.junit_document import Outcome, TestCase, TestSuite, junit_document
from moh_deploy.validate.accuracy.show import shown

if TYPE_CHECKING:
    from moh_deploy.validate.accuracy import MetricParity
    from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport


def junit_xml(report: ParityReport, subject: str) -> str:
    """Return the report on a package or engine as JUnit XML."""
    suites = [_suite(one, f"{subject} against {one.reference}") for one in report.parts]
    suites = suites or [_suite(report, subject)]
    if report.ratchet is not None:
        suites.append(ratchet_suite(report.ratchet))
    return junit_document("verify", suites)


def _suite(report: ParityReport, name: str) -> TestSuite:
    facts = {"subject": report.subject, "reference": report.reference, "policy": report.policy}
    facts["kernels"] = report.kernels.describe()
    return TestSuite(name, tuple(_cases(report)), tuple(facts.items()), report.notes)


def _cases(report: ParityReport) -> Iterator[TestCase]:
    verdict: Outcome = "passed" if report.equal else "failure"
    compared = len(report.accuracy) + len(report.outputs) + len(report.layers)
    said = f"{compared} comparisons" if report.equal else report.reasons[0]
    yield TestCase("verify", "verdict", verdict, said)
    yield from map(_metric, report.accuracy)
    yield from map(_output, report.outputs)
    yield from map(_layer, report.layers)
    if not report.has_routing:
        yield TestCase("layers", "routing", "skipped", "The reference holds no gates.")


def _metric(one: MetricParity) -> TestCase:
    name = f"{one.metric} [{one.against}]"
    if one.reason is not None:
        return TestCase("accuracy", name, "failure", f"{one.verdict}: {one.reason}")
    values = f"{shown(one.metric, one.reference)}, now {shown(one.metric, one.package)}"
    return TestCase("accuracy", name, "passed", f"{values}, {one.samples} samples")


def _output(entry: OutputParity) -> TestCase:
    name = f"{entry.name} [{entry.vectors}]"
    measured = f"max abs error {entry.max_abs_error:.3g}"
    if entry.reason is not None:
        return TestCase("outputs", name, "failure", entry.reason)
    if entry.elements == 0:
        return TestCase("outputs", name, "skipped", "It is empty: no data.")
    if entry.tolerance is None:
        return TestCase("outputs", name, "skipped", f"{measured}, behind an explained flip")
    return TestCase("outputs", name, "passed", f"{measured}, tolerance {entry.tolerance:.3g}")


def _layer(entry: LayerParity) -> TestCase:
    name = f"{entry.path} [{entry.vectors}]"
    if entry.reason is not None:
        return TestCase("layers", name, "failure", entry.reason)
    if entry.no_data:
        return TestCase("layers", name, "skipped", "No token was left to compare: no data.")
    return TestCase("layers", name, "passed", ", ".join(_measured(entry)))


def _measured(entry: LayerParity) -> Iterator[str]:
    yield f"{entry.equal_decisions} of {entry.decisions} clear decisions are equal"
    yield f"gate error {entry.gate_error:.3g}"
    if entry.score_error is not None:
        yield f"score error {entry.score_error:.3g}, tolerance {entry.score_tolerance:.3g}"
    if entry.attention_error is not None:
        limit = entry.attention_tolerance
        yield f"attention error {entry.attention_error:.3g}, tolerance {limit:.3g}"

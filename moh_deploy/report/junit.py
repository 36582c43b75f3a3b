"""A parity report as JUnit XML: a test case for every output and layer, and one for the verdict.

Every comparison with another reference is a test suite, and so is that with a baseline file.

What was measured and not judged is skipped, with the reason; what could not be compared failed.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from moh_deploy.validate.accuracy.show import shown

if TYPE_CHECKING:
    from moh_deploy.ratchet.result import RatchetEntry, RatchetResult
    from moh_deploy.validate.accuracy import MetricParity
    from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport

Outcome = Literal["passed", "failure", "skipped", "error"]

# XML has no form for these characters, not even escaped.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class TestCase:
    """One line of the report.

    Attributes:
        message: Why it did not pass; what was measured if it did.
    """

    group: str
    name: str
    outcome: Outcome
    message: str


@dataclass(frozen=True)
class TestSuite:
    """One comparison.

    Attributes:
        facts: Name to value, of what all its test cases have in common.
        notes: What was found out.
    """

    name: str
    cases: tuple[TestCase, ...]
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def junit_xml(report: ParityReport, subject: str) -> str:
    """Return the report on a package or engine as JUnit XML."""
    suites = [_suite(one, f"{subject} against {one.reference}") for one in report.parts]
    suites = suites or [_suite(report, subject)]
    if report.ratchet is not None:
        suites.append(_ratchet_suite(report.ratchet))
    return junit_document("verify", suites)


def junit_error(subject: str, message: str, command: str = "verify") -> str:
    """Return the report on a run that ended without an answer."""
    case = TestCase(command, "run", "error", message)
    return junit_document(command, [TestSuite(subject, (case,))])


def junit_document(command: str, suites: Sequence[TestSuite]) -> str:
    """Return what a command of `moh-deploy` found, as JUnit XML."""
    cases = [case for suite in suites for case in suite.cases]
    root = xml.Element("testsuites", {"name": f"moh-deploy {command}", **_counts(cases)})
    for suite in suites:
        _add_suite(root, suite)
    xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + xml.tostring(root, "unicode") + "\n"


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
    if not entry.decisions:
        return TestCase(
            "layers", name, "skipped", "Every token is a near-tie or padding: no decision to see."
        )
    measured = f"{entry.equal_decisions} of {entry.decisions} decisions are equal"
    return TestCase("layers", name, "passed", f"{measured}, gate error {entry.gate_error:.3g}")


def _ratchet_suite(result: RatchetResult) -> TestSuite:
    verdict: Outcome = "failure" if result.reasons else "passed"
    said = (*result.reasons, result.summary)[0]
    cases = (TestCase("baseline", "verdict", verdict, said), *map(_kept, result.entries))
    return TestSuite(f"baseline {result.file}", cases)


def _kept(entry: RatchetEntry) -> TestCase:
    outcome: Outcome = "passed" if entry.outcome in ("held", "better") else "skipped"
    if entry.outcome in ("worse", "gone"):
        outcome = "failure"
    return TestCase("baseline", f"{entry.group}: {entry.name}", outcome, entry.sentence)


def _add_suite(root: xml.Element, suite: TestSuite) -> None:
    counts = _counts(suite.cases)
    element = xml.SubElement(root, "testsuite", {"name": _text(suite.name), **counts})
    if suite.facts:
        properties = xml.SubElement(element, "properties")
        for name, value in suite.facts:
            xml.SubElement(properties, "property", name=name, value=_text(value))
    for case in suite.cases:
        _add(element, case)
    if suite.notes:
        xml.SubElement(element, "system-out").text = _text("\n".join(suite.notes))


def _add(suite: xml.Element, case: TestCase) -> None:
    element = xml.SubElement(
        suite, "testcase", classname=f"moh-deploy.{case.group}", name=_text(case.name), time="0"
    )
    if case.outcome == "passed":
        xml.SubElement(element, "system-out").text = _text(case.message)
        return
    found = xml.SubElement(element, case.outcome, message=_text(case.message))
    if case.outcome != "skipped":
        found.set("type", case.outcome)
        found.text = _text(case.message)


def _counts(cases: Sequence[TestCase]) -> dict[str, str]:
    outcomes = [case.outcome for case in cases]
    return {
        "tests": str(len(cases)),
        "failures": str(outcomes.count("failure")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skipped")),
    }


def _text(value: str) -> str:
    return _NOT_XML.sub("?", value)

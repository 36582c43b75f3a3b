"""JUnit XML, in the form that GitLab, Jenkins and their like read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


def junit_document(command: str, suites: Sequence[TestSuite]) -> str:
    """Return the text of a file.

    Args:
        command: Of `moh-deploy`.
        suites: What it has compared or measured, at least one.
    """
    every = [case for suite in suites for case in suite.cases]
    counts = _counts(every)
    del counts["skipped"]  # Jenkins' schema has it for a suite, and not for all of them
    root = xml.Element("testsuites", {"name": f"moh-deploy {command}", **counts})
    for suite in suites:
        _add_suite(root, suite)
    xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + xml.tostring(root, "unicode") + "\n"


def junit_error(subject: str, message: str, command: str = "verify") -> str:
    """Return the text of a file on a run that ended without an answer."""
    case = TestCase(command, "run", "error", message)
    return junit_document(command, [TestSuite(subject, (case,))])


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

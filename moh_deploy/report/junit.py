"""Show a document as JUnit XML, in the form that GitLab, Jenkins and their like read."""

import re
import xml.etree.ElementTree as xml
from collections.abc import Sequence

from moh_deploy.report.document import About, CiCase, CiOutcome, CiSuite, Document
from moh_deploy.system.replaceable import FileKind

# XML has no form for these characters, not even escaped.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


JUNIT_FILE = FileKind.beginning_with(
    "JUnit report of moh-deploy", rb'<\?xml [^>]*>\s*<testsuites name="moh-deploy '
)


def junit(document: Document, about: About) -> str:
    """Return the text of a file."""
    # A file without a test case is no answer to a CI, and some of them call it a pass.
    suites = document.suites or (CiSuite((_verdict_case(document),)),)
    counts = _counts([case for suite in suites for case in suite.cases])
    del counts["skipped"]  # Jenkins' schema has it for a suite, and not for all of them
    root = xml.Element("testsuites", {"name": f"moh-deploy {document.kind}", **counts})
    for suite in suites:
        _add_suite(root, suite, about.subject)
    xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + xml.tostring(root, "unicode") + "\n"


def _verdict_case(document: Document) -> CiCase:
    """Return the one test case of a document that names none."""
    verdict = document.verdict
    if verdict is None or verdict.is_good is None:
        return CiCase(document.kind, "verdict", "skipped", "Nothing is judged.")
    outcome: CiOutcome = "passed" if verdict.is_good else "failure"
    return CiCase(document.kind, "verdict", outcome, (*verdict.reasons, verdict.sentence)[0])


def _add_suite(root: xml.Element, suite: CiSuite, subject: str) -> None:
    name = suite.name or (f"{subject} against {suite.against}" if suite.against else subject)
    element = xml.SubElement(root, "testsuite", {"name": _xml_text(name), **_counts(suite.cases)})
    if suite.facts:
        properties = xml.SubElement(element, "properties")
        for key, value in suite.facts:
            xml.SubElement(properties, "property", name=key, value=_xml_text(value))
    for case in suite.cases:
        _add(element, case)
    if suite.notes:
        xml.SubElement(element, "system-out").text = _xml_text("\n".join(suite.notes))


def _add(suite: xml.Element, case: CiCase) -> None:
    element = xml.SubElement(
        suite, "testcase", classname=f"moh-deploy.{case.group}", name=_xml_text(case.name), time="0"
    )
    if case.outcome == "passed":
        xml.SubElement(element, "system-out").text = _xml_text(case.message)
        return
    found = xml.SubElement(element, case.outcome, message=_xml_text(case.message))
    if case.outcome != "skipped":
        found.set("type", case.outcome)
        found.text = _xml_text(case.message)


def _counts(cases: Sequence[CiCase]) -> dict[str, str]:
    outcomes = [case.outcome for case in cases]
    return {
        "tests": str(len(cases)),
        "failures": str(outcomes.count("failure")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skipped")),
    }


def _xml_text(value: str) -> str:
    return _NOT_XML.sub("?", value)

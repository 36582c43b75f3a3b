"""Read JUnit XML as a CI does, and refuse what some of them would stumble over."""

import xml.etree.ElementTree as xml

from junitparser import Error, Failure, JUnitXml, Skipped

# What stands in which order below each element, and what it says: all within Jenkins' schema.
_CHILDREN = {
    "testsuites": ["testsuite"],
    "testsuite": ["properties", "testcase", "system-out", "system-err"],
    "properties": ["property"],
    "testcase": ["skipped", "error", "failure", "system-out", "system-err"],
}
_ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped"},
    "testcase": {"name", "classname", "time"},
    "property": {"name", "value"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "skipped": {"message"},
}
_OUTCOMES = {Failure: "failure", Error: "error", Skipped: "skipped"}


def read_outcomes(text: str) -> dict[str, str]:
    """Return the name of each test case and its outcome."""
    _check_structure(xml.fromstring(text.encode()))
    found: dict[str, str] = {}
    for suite in JUnitXml.fromstring(text.encode()):
        said = [suite.tests, suite.failures, suite.errors, suite.skipped]
        suite.update_statistics()
        assert said == [suite.tests, suite.failures, suite.errors, suite.skipped]
        cases = {case.name: case.result for case in suite}
        assert len(cases) == suite.tests, "two test cases of one suite have the same name"
        for name, result in cases.items():
            assert len(result) <= 1
            found[name] = _OUTCOMES[type(result[0])] if result else "passed"
    return found


def _check_structure(element: xml.Element) -> None:
    assert element.attrib.keys() == _ATTRIBUTES.get(element.tag, set())
    places = [_CHILDREN.get(element.tag, []).index(child.tag) for child in element]
    assert places == sorted(places)
    for child in element:
        _check_structure(child)

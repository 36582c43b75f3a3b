from __future__ import annotations

import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

from moh_deploy.report.junit import junit_error, junit_xml
from moh_deploy.report.markdown import markdown, markdown_error
from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport
from tests.kernel_library import NO_KERNELS

OUTPUT = OutputParity("y", "0 (batch=2)", 1e-6, 1e-6, 1e-4, elements=6)
LAYER = LayerParity("blocks.0.attn", "0 (batch=2)", 24, 24, 0, 0, 1e-6, 1e-4, agreement=1.0)
REPORT = ParityReport("the original", 1, (OUTPUT,), (LAYER,), True, 0, 1, (), NO_KERNELS)


def outcomes(report: ParityReport) -> dict[str, str]:
    """Read the XML as a CI does: name of each test case to what its elements say."""
    root = xml.fromstring(junit_xml(report, "build/model").encode())
    (suite,) = root
    cases = suite.findall("testcase")
    found = {case.get("name", ""): _outcome(case) for case in cases}
    assert len(found) == len(cases) == int(suite.get("tests", ""))
    for attribute, outcome in (
        ("failures", "failure"),
        ("skipped", "skipped"),
        ("errors", "error"),
    ):
        count = sum(one == outcome for one in found.values())
        assert suite.get(attribute) == root.get(attribute) == str(count)
    return found


def _outcome(case: xml.Element) -> str:
    tags = {child.tag for child in case} & {"failure", "skipped", "error"}
    return tags.pop() if tags else "passed"


def test_each_comparison_is_a_test_case():
    assert outcomes(REPORT) == {
        "verdict": "passed",
        "y [0 (batch=2)]": "passed",
        "blocks.0.attn [0 (batch=2)]": "passed",
    }


def test_differences_fail_and_say_why():
    layer = replace(LAYER, reason="gates <of> & 'it' \x00 differ")
    report = replace(REPORT, layers=(layer,))
    assert outcomes(report)["blocks.0.attn [0 (batch=2)]"] == "failure"
    assert outcomes(report)["verdict"] == "failure"
    text = junit_xml(report, "m")
    failure = xml.fromstring(text.encode()).find(".//testcase[@name='verdict']/failure")
    assert failure is not None
    assert failure.get("message") == "gates <of> & 'it' ? differ"
    assert "gates &lt;of> &amp; 'it'" in markdown(report, "m")


def test_no_data_never_passes():
    nothing = replace(REPORT, vector_sets=0, outputs=(), layers=(), has_routing=False)
    assert outcomes(nothing) == {"verdict": "failure", "routing": "skipped"}
    assert "NOT EQUAL" in markdown(nothing, "m")
    empty = replace(REPORT, outputs=(replace(OUTPUT, elements=0),))
    assert outcomes(empty)["verdict"] == "failure"
    assert outcomes(empty)["y [0 (batch=2)]"] == "skipped"
    assert "| no data |" in markdown(empty, "m")


def test_what_is_not_judged_is_skipped():
    free = replace(OUTPUT, vectors="0, behind a flip", tolerance=None, max_abs_error=0.5)
    undecided = replace(LAYER, decisions=0, equal_decisions=0)
    report = replace(REPORT, outputs=(OUTPUT, free), layers=(undecided,))
    found = outcomes(report)
    assert found["y [0, behind a flip]"] == "skipped"
    assert found["blocks.0.attn [0 (batch=2)]"] == "skipped"
    assert "| blocks.0.attn | 0 (batch=2) | 100.00 % | 0 | 0 | 1e-06 | 0.0001 | no data |" in (
        markdown(report, "m")
    )


def test_run_without_an_answer_is_an_error():
    root = xml.fromstring(junit_error("m", "no kernel library").encode())
    assert root.get("errors") == "1"
    assert "no answer" in markdown_error("m", "no kernel library")


def test_markdown_has_the_verdict_first_and_no_markup_of_names():
    path = Path("build/[model](http://a)|<b>*_@you")
    text = markdown(replace(REPORT, notes=("a note",)), str(path))
    assert text.startswith("### build/\\[model\\](http:/a)\\|&lt;b>\\*\\_\\@you: equal\n")
    assert "\n| y | 0 (batch=2) | 1e-06 | 0.0001 | equal |\n" in text
    assert "\na note\n" in text

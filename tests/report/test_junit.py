import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import JUnitXml

from moh_deploy.report.document import About, CiCase, CiOutcome, CiSuite, Document
from moh_deploy.report.junit import junit
from tests.nightly import nightly
from tests.report.junit_reader import read_outcomes


def document(*cases: CiCase, name: str = "m", note: str = "") -> str:
    facts = (("subject", name),)
    suite = CiSuite(cases, facts=facts, notes=(note,))
    return junit(Document("verify", (), suites=(suite,)), About(name))


HOSTILE = {
    "end of CDATA": "]]>",
    "markup": "</testcase><testcase name='x'>",
    "entities": "&lt;&amp;&#0;&bomb;",
    "quotes": "\"'`",
    "line breaks": "a\nb\tc",
    "astral and combining": "𝔐oẖ \U0001f9e0 ‮RTL",
    "long": "x" * 100_000,
    "declaration": "<?xml version='1.0'?><!DOCTYPE a>",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("outcome", ["passed", "failure", "skipped", "error"])
def test_hostile_text_comes_back_as_it_was(text: str, outcome: CiOutcome):
    written = document(CiCase("outputs", text, outcome, text), name=text, note=text)
    assert read_outcomes(written) == {text: outcome}
    (suite,) = JUnitXml.fromstring(written.encode())
    (case,) = suite
    assert suite.name == text
    assert (case.result[0].message if case.result else case.system_out) == text


@pytest.mark.parametrize("code", [0x0, 0x8, 0xB, 0x1B, 0x1F, 0xD800, 0xDFFF, 0xFFFE, 0xFFFF])
def test_what_xml_has_no_form_for_is_replaced(code: int):
    written = document(CiCase("outputs", f"a{chr(code)}b", "failure", f"{chr(code)}"))
    assert read_outcomes(written) == {"a?b": "failure"}


@nightly
@given(st.text(st.characters(codec=None, categories=None)), st.text())
def test_any_text_can_be_read(name: str, message: str):
    case = CiCase("outputs", name, "failure", message)
    assert list(read_outcomes(document(case, name=name)).values()) == ["failure"]


def test_counts_are_those_of_the_cases():
    outcomes: tuple[CiOutcome, ...] = ("passed", "failure", "failure", "skipped", "error")
    cases = [CiCase("outputs", str(i), outcome, "") for i, outcome in enumerate(outcomes)]
    root = JUnitXml.fromstring(document(*cases).encode())
    assert (root.tests, root.failures, root.errors) == (5, 2, 1)

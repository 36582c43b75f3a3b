import math
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

import pytest
from junitparser import JUnitXml

from moh_deploy.report.baseline.result import RatchetEntry, RatchetResult
from moh_deploy.report.document import About, no_answer
from moh_deploy.report.junit import junit
from moh_deploy.report.markdown import markdown
from moh_deploy.validate.accuracy.metric_parity import ACCURACY_RULES, ChangedSample, MetricParity
from moh_deploy.validate.compare.checks import Check, Top1Agreement
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity
from moh_deploy.validate.compare.routing_statistics import HeadLoad, RoutingStatistics
from moh_deploy.validate.compare.tolerances import TOLERANCES
from tests.kernel_library import NO_KERNELS
from tests.nightly import sampled
from tests.report.json_schema import assert_of_form
from tests.report.junit_reader import read_outcomes
from tests.report.shown import as_junit, as_markdown

OUTPUT = OutputParity("y", "0 (batch=2)", 1e-6, 1e-6, 1e-4, elements=6)
LAYER = LayerParity("blocks.0.attn", "0 (batch=2)", 24, 24, 0, 0, 1e-6, 1e-4, agreement=1.0)
REPORT = ParityReport("the original", 1, (OUTPUT,), (LAYER,), True, 0, 1, (), NO_KERNELS)


def outcomes(report: ParityReport) -> dict[str, str]:
    """Read the XML as a CI does: name of each test case to its outcome."""
    return read_outcomes(as_junit(report, "build/model"))


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
    text = as_junit(report, "m")
    failure = xml.fromstring(text.encode()).find(".//testcase[@name='verdict']/failure")
    assert failure.get("message") == "gates <of> & 'it' ? differ"
    assert "gates &lt;of> &amp; 'it'" in as_markdown(report, "m")


OUTPUT_CASE, LAYER_CASE = "y [0 (batch=2)]", "blocks.0.attn [0 (batch=2)]"
UNTOLD = replace(LAYER, undecided_tokens=1, reason="no data. export again")
NOTHING = replace(LAYER, decisions=0, equal_decisions=0, judged_by="nothing")
EMPTY = replace(OUTPUT, elements=0)
FREE = replace(OUTPUT, vectors="0, behind a flip", tolerance=None, max_abs_error=0.5)
NO_RUN = replace(REPORT, vector_sets=0, outputs=(), layers=(), has_routing=False)
FREE_RUN = replace(REPORT, outputs=(OUTPUT, FREE), layers=(NOTHING,))
PADDING = replace(REPORT, outputs=(EMPTY,), layers=(NOTHING,))
WRONG = replace(REPORT, layers=(replace(UNTOLD, wrong=("gates",)),))
ROW = (
    "| blocks.0.attn | 0 (batch=2) | 100.0 % | 0 | 0 | 1e-06 | 0.0001 | - | - | nothing | no data |"
)


@pytest.mark.parametrize(
    ("report", "case", "outcome", "answer", "shown"),
    [
        (NO_RUN, "routing", "skipped", "NOT EQUAL", "NOT EQUAL"),
        (replace(REPORT, outputs=(EMPTY,)), OUTPUT_CASE, "skipped", "INCONCLUSIVE", "| no data |"),
        (FREE_RUN, "y [0, behind a flip]", "skipped", "INCONCLUSIVE", ROW),
        (FREE_RUN, LAYER_CASE, "skipped", "INCONCLUSIVE", ROW),
        # A flip of which it cannot be told is no pass, and hides no fault.
        (replace(REPORT, layers=(UNTOLD,)), LAYER_CASE, "failure", "INCONCLUSIVE", "no data"),
        (WRONG, LAYER_CASE, "failure", "NOT EQUAL", "NOT EQUAL"),
        (PADDING, LAYER_CASE, "skipped", "INCONCLUSIVE", "no data"),
    ],
)
def test_what_holds_nothing_or_cannot_be_told_never_passes(
    report: ParityReport, case: str, outcome: str, answer: str, shown: str
):
    assert outcomes(report)[case] == outcome
    assert (report.equal, report.answer, outcomes(report)["verdict"]) == (False, answer, "failure")
    assert shown in as_markdown(report, "m")


def test_run_without_an_answer_is_an_error():
    nothing = no_answer("verify", "no kernel library")
    root = xml.fromstring(junit(nothing, About("m")).encode())
    assert root.get("errors") == "1"
    assert markdown(nothing, About("m")) == "### m: NO ANSWER\n\nno kernel library\n"


def test_markdown_has_the_verdict_first_and_no_markup_of_names():
    path = Path("build/[model](http://a)|<b>*_@you")
    text = as_markdown(replace(REPORT, notes=("a note",)), str(path))
    assert text.startswith("### build/\\[model\\](http:/a)\\|&lt;b>\\*\\_\\@you: equal\n")
    assert "\n| y | 0 (batch=2) | 1e-06 | 0.0001 | equal |\n" in text
    assert "\na note\n" in text


METRIC = MetricParity(
    metric="top-1",
    output="y",
    better="higher",
    samples=360,
    labels=360,
    ignored=0,
    shifted=False,
    against="the original",
    reference=0.98,
    package=0.97,
    interval=(-0.02, 0.001),
    confidence=0.95,
    resamples=10_000,
    seed=0,
    smoothed=True,
    worse=4,
    improved=1,
    p_value=0.375,
    rule=ACCURACY_RULES["top-1"],
    allowed_drop=0.0098,
    changed=(ChangedSample(17, "val.npz[17]", 1.0, 0.0, 3, 3, 8),),
    verdict="passed",
    reason=None,
)


CANNOT_TELL = "from 360 samples it cannot be told"
UNKNOWN = replace(METRIC, verdict="cannot tell", reason=CANNOT_TELL)


def test_metrics_are_test_cases_and_not_knowing_is_no_pass():
    assert outcomes(replace(REPORT, accuracy=(METRIC,)))["top-1 [the original]"] == "passed"
    report = replace(REPORT, accuracy=(UNKNOWN,))
    assert outcomes(report)["top-1 [the original]"] == outcomes(report)["verdict"] == "failure"
    text = as_markdown(report, "m")
    assert "INCONCLUSIVE" in text
    assert report.failure.message.startswith(f"inconclusive: {CANNOT_TELL}")
    assert "\n| top-1 | 98.00 % | 97.00 % | -1.00 points | -2.00 to 0.10 points |" in text
    assert "| 360 | 4 | 1 | 0.375 | **inconclusive** |" in text
    assert "\n| 17 | val.npz\\[17\\] | 3 | 3 | 8 |\n" in text


def test_what_is_wrong_as_well_is_not_equal():
    undecided = replace(REPORT, accuracy=(UNKNOWN,), layers=())
    wrong = replace(undecided, outputs=(replace(OUTPUT, reason="y differs."),))
    assert (undecided.answer, wrong.answer) == ("INCONCLUSIVE", "NOT EQUAL")
    assert replace(undecided, parts=(undecided, wrong)).answer == "NOT EQUAL"
    assert replace(undecided, parts=(undecided, undecided)).answer == "INCONCLUSIVE"
    assert combined([wrong, PADDING]).answer == "NOT EQUAL"


def test_baseline_file_is_a_suite_of_its_own():
    entries = (
        RatchetEntry("output 'y'", "elements", "worse", 6, 5, 6, "fewer"),
        RatchetEntry("inputs", "p50_ms", "not compared", 1, None, None, "elsewhere"),
        RatchetEntry("layer 'a'", "decisions", "held", 6, 6, 6, "held"),
        RatchetEntry("layer 'b'", "decisions", "gone", 6, None, None, "gone"),
        RatchetEntry("layer 'c'", "decisions", "new", None, 6, None, "new"),
    )
    report = replace(REPORT, ratchet=RatchetResult("baseline.json", entries, updated=False))
    text = as_junit(report, "m")
    first, second = JUnitXml.fromstring(text.encode())
    assert (first.name, second.name) == ("m", "baseline baseline.json")
    found = read_outcomes(text)
    assert found["verdict"] == "failure"  # of the suite that comes last
    assert found["output 'y': elements"] == found["layer 'b': decisions"] == "failure"
    assert found["inputs: p50_ms"] == found["layer 'c': decisions"] == "skipped"
    assert found["layer 'a': decisions"] == "passed"
    # A file with which nothing was compared fails.
    nothing = RatchetResult("baseline.json", entries[1:2], updated=False)
    assert outcomes(replace(REPORT, ratchet=nothing))["verdict"] == "failure"


def test_package_in_few_bits_is_within_tolerance_with_its_agreement_and_never_equal():
    logits = replace(OUTPUT, top_1=Top1Agreement(15, 16))
    again = replace(logits, vectors="0 (batch=2), routing forced", forced=True)
    load = HeadLoad("blocks.0.attn", 0, 24, (24,), (24,))
    report = replace(
        REPORT,
        outputs=(again, logits, replace(logits, vectors="1")),
        layers=(replace(LAYER, forced=True, free_flips=3),),
        precision="int4",
        statistics=RoutingStatistics((load,)),
    )
    assert (report.equal, report.verdict) == (True, "within tolerance")
    assert report.to_json()["top_1"] == {"y": {"same": 30, "of": 32}}
    assert report.to_json()["flips"] == {"tokens": 3, "of": 24}
    shown = as_markdown(report, "m")
    assert "### m: within tolerance (int4)" in shown
    assert "top-1 agreement: 93.8 % of 32 rows of 'y'\nother heads: 3 of 24 tokens\n" in shown
    assert "quality: not measured" in shown
    assert "| within tolerance |" in shown
    assert "equal |" not in shown
    assert "WITHIN TOLERANCE (int4): 4 comparisons" in as_junit(report, "m")
    assert 'name="quality" value="not measured' in as_junit(report, "m")
    # A condition of the user's is a measure of quality; the weights as they were written is none.
    asked = Check("flips <= 5", "3 of 24 tokens chose other heads.", "passed", asked=True)
    weights = replace(asked, name="stored weights", asked=False)
    assert "not measured" in as_markdown(replace(report, checks=(weights,)), "m")
    assert "not measured" not in as_markdown(replace(report, checks=(weights, asked)), "m")
    assert "agreement:" not in as_markdown(replace(report, precision="float16"), "m")


def test_check_that_fails_is_a_reason_and_a_test_case():
    check = Check("stored weights", "1 of 24 numbers of 'w' differ.", "failed")
    report = replace(REPORT, precision="int8", checks=(check,))
    assert report.answer == "NOT EQUAL"
    assert report.reasons == ("stored weights: 1 of 24 numbers of 'w' differ.",)
    assert outcomes(report)["stored weights"] == "failure"
    unknown = replace(report, checks=(replace(check, verdict="cannot tell"),))
    assert unknown.answer == "INCONCLUSIVE"


@sampled(2)
@pytest.mark.parametrize(
    "report",
    [
        REPORT,
        replace(REPORT, accuracy=(METRIC, replace(METRIC, interval=None, reference=math.nan))),
        replace(REPORT, has_routing=False, layers=(), rules={"float16": TOLERANCES["float16"]}),
        replace(
            REPORT,
            outputs=(replace(OUTPUT, tolerance=None, max_abs_error=math.nan, reason="x"),),
            layers=(replace(LAYER, smallest_margin=math.inf),),
        ),
    ],
)
def test_reports_are_of_the_form(report: ParityReport):
    assert_of_form("verify", {"package": "m", **report.to_json()})

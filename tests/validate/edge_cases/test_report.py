import xml.etree.ElementTree as xml
from dataclasses import replace

import pytest

from moh_deploy.package import CorpusSample, MinedToken
from moh_deploy.validate.edge_cases.mining import Mined
from moh_deploy.validate.edge_cases.report import ProbeReport
from moh_deploy.validate.edge_cases.source import CaseResult
from tests.handmade_package import vectors
from tests.kernel_library import NO_KERNELS
from tests.report.json_schema import assert_of_form
from tests.report.shown import as_junit, text_of

PASSED = CaseResult("routing", "ties", "blocks.0", "passed", "all agrees")
SKIPPED = CaseResult("input", "padding only", "model outputs", "not run", "no mask")
FAILED = CaseResult("routing", "NaN", "blocks.1", "failed", "gates of layer 'blocks.1' [0] hide it")
SAMPLE = CorpusSample(vectors(batch=1), (MinedToken(1, (0, 2), 1e-7),))
MINED = Mined(3, 18, (SAMPLE,), ("in.npz[1]",), 2, ("blocks.0",))
REPORT = ProbeReport(
    results=(PASSED, replace(PASSED, place="blocks.1"), SKIPPED),
    mining=MINED,
    corpus=(SAMPLE,),
    corpus_written=True,
    layers=("blocks.0", "blocks.1"),
    layer_runs=(),
    kernels=NO_KERNELS,
    policy="the built-in table",
)


@pytest.mark.parametrize(
    "report", [REPORT, replace(REPORT, mining=None, corpus=()), replace(REPORT, results=(FAILED,))]
)
def test_reports_are_of_the_form(report: ProbeReport):
    assert_of_form("probe", {"package": "m", **report.to_json()})


def test_layers_of_which_the_same_is_said_are_one_row():
    text = text_of(REPORT, 160)
    assert "2 layers" in text
    assert "PASSED: 2 passed, 0 failed, 0 not applicable, 1 not run" in text
    assert "2 samples of the least clear left out: a corpus has room for 4 MiB" in text
    assert "Margins are not known, or nothing is chosen, in blocks.0." in text
    assert "in.npz[1]" in text


def test_layers_without_margins_are_named_up_to_eight():
    many = replace(MINED, unknown=tuple(f"blocks.{index}" for index in range(9)))
    assert "blocks.7 and 1 more." in " ".join(text_of(replace(REPORT, mining=many), 160).split())


def test_what_failed_is_said_in_full():
    failed = replace(REPORT, results=(PASSED, FAILED, FAILED))
    assert not failed.passed
    assert failed.failure.message == (
        "the package does not stand its edge cases: gates of layer 'blocks.1' [0] hide it (1 more)"
    )
    assert "FAILED: 1 passed, 2 failed" in text_of(failed, 160)


def test_nothing_that_ran_is_no_pass():
    assert replace(REPORT, results=(SKIPPED,)).reasons == (
        "no case could be run, so nothing is proven.",
    )


def test_nothing_but_empty_outputs_is_no_pass():
    empty = CaseResult("input", "zero: seq=0", "model outputs", "passed", "every output is empty")
    nan = CaseResult(
        "input", "one: seq=1", "model outputs", "not applicable", "NaN in every output"
    )
    assert replace(REPORT, results=(empty, nan)).reasons == (
        "no case of a size above 0 passed, so nothing is proven.",
    )


def test_junit_skips_what_did_not_run():
    (suite,) = xml.fromstring(as_junit(replace(REPORT, results=(PASSED, SKIPPED)), "m"))
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped")} == {
        "tests": "3",
        "failures": "0",
        "skipped": "1",
    }

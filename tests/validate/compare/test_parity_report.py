from __future__ import annotations

import math
from dataclasses import replace

import pytest

from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.tolerances import TOLERANCES
from tests.nightly import sampled
from tests.report.json_schema import assert_of_form
from tests.validate.compare.test_parity_document import LAYER, METRIC, OUTPUT, REPORT


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


NOTHING = replace(LAYER, judged_by="nothing")
PADDING = replace(REPORT, outputs=(replace(OUTPUT, elements=0),), layers=(NOTHING,))


def test_runs_of_padding_alone_cannot_be_told():
    more = replace(PADDING, layers=(NOTHING, replace(NOTHING, path="b")))
    assert {PADDING.answer, more.answer} == {"CANNOT TELL"}


def test_what_cannot_be_told_hides_no_fault_of_another_part():
    wrong = replace(REPORT, outputs=(replace(OUTPUT, reason="it differs."),))
    more = replace(PADDING, layers=(NOTHING, replace(NOTHING, path="b")))
    assert combined([wrong, more]).answer == "NOT EQUAL"

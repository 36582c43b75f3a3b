from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from moh_deploy.json_text import to_json_text
from moh_deploy.report.parity_json import VERIFY_JSON, VerifyJson
from moh_deploy.validate.parity_report import ParityReport
from moh_deploy.validate.tolerances import TOLERANCES
from tests.report.test_junit import LAYER, METRIC, OUTPUT, REPORT

SCHEMA = Path(__file__).parents[2] / "docs" / "verify.schema.json"


def text_of(report: ParityReport, **more: object) -> str:
    return to_json_text({"package": "m", **report.to_json(), **more})


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
def test_reports_are_of_the_schema(report: ParityReport):
    VerifyJson.model_validate_json(text_of(report))


def test_another_key_is_not():
    with pytest.raises(ValidationError, match="verdict"):
        VerifyJson.model_validate_json(text_of(REPORT, verdict="good"))


def test_error_without_an_answer_is_of_the_schema_and_no_half_of_one_is():
    error = {"type": "ConfigError", "message": "no", "hint": None, "exit_code": 2}
    VERIFY_JSON.validate_python({"error": error})
    with pytest.raises(ValidationError):
        VERIFY_JSON.validate_python({"error": error, "schema_version": 1})


def test_schema_in_the_docs_is_that_of_the_code():
    # To write it: json.dumps(VERIFY_JSON.json_schema(), indent=2) + "\n".
    assert json.loads(SCHEMA.read_text()) == VERIFY_JSON.json_schema()

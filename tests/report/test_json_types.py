"""The forms of all that `--json` prints of a job, which docs/*.schema.json describe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from tests.report.forms.bench_json import BENCH_JSON
from tests.report.forms.bisect_json import BISECT_JSON
from tests.report.forms.parity_json import VERIFY_JSON
from tests.report.forms.probe_json import PROBE_JSON

DOCS = Path(__file__).parents[2] / "docs"
FORMS: dict[str, TypeAdapter[object]] = {
    "bench.schema.json": BENCH_JSON,
    "bisect.schema.json": BISECT_JSON,
    "probe.schema.json": PROBE_JSON,
    "verify.schema.json": VERIFY_JSON,
}


def test_every_schema_in_the_docs_has_a_form():
    assert {path.name for path in DOCS.glob("*.schema.json")} == set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_schema_in_the_docs_is_that_of_the_code(name: str):
    # To write it: json.dumps(FORMS[name].json_schema(), indent=2) + "\n".
    assert json.loads((DOCS / name).read_text()) == FORMS[name].json_schema()


@pytest.mark.parametrize("name", FORMS)
def test_error_without_an_answer_is_of_the_form_and_no_half_of_one_is(name: str):
    error = {"type": "ConfigError", "message": "no", "hint": None, "exit_code": 2}
    FORMS[name].validate_python({"error": error})
    with pytest.raises(ValidationError):
        FORMS[name].validate_python({"error": error, "schema_version": 1})

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from moh_deploy.json_text import to_json_text
from moh_deploy.report.bench import BenchReport
from moh_deploy.report.bench_json import BENCH_JSON, BenchJson
from moh_deploy.tuning.agreement import Agreement
from moh_deploy.tuning.fixed_routing import RoutingOverhead
from moh_deploy.tuning.fresh_run import FreshRun
from moh_deploy.tuning.timing import Difference
from tests.report.html.samples import bench_report

SCHEMA = Path(__file__).parents[2] / "docs" / "bench.schema.json"
REPORT = bench_report()
ONE = Difference(0.1, 0.0, 0.2)
ROUTING = RoutingOverhead("build/model", None, "recorded", {"batch": 4}, ONE, ONE, 0.1, None)


def unknown(report: BenchReport) -> BenchReport:
    """Return it with nothing known that may be unknown."""
    results = [
        replace(
            one,
            fresh=FreshRun(),
            latency=replace(one.latency, p90_ms=None, p99_ms=None, sorted_ms=()),
            agreement=Agreement(math.nan, None, "it has 2 outputs, not 1."),
        )
        for one in report.results
    ]
    routing = replace(ROUTING, wall_ms=None, cpu_ms=None, share=None, reason="no")
    return replace(report, results=tuple(results), routing=(routing,), samples_by=None, gates=())


@pytest.mark.parametrize("report", [REPORT, replace(REPORT, routing=(ROUTING,)), unknown(REPORT)])
def test_reports_are_of_the_schema(report: BenchReport):
    BenchJson.model_validate_json(to_json_text(report.to_json()))


def test_another_key_is_not():
    with pytest.raises(ValidationError, match="verdict"):
        BenchJson.model_validate_json(to_json_text({**REPORT.to_json(), "verdict": "good"}))


def test_error_without_an_answer_is_of_the_schema_and_no_half_of_one_is():
    error = {"type": "ConfigError", "message": "no", "hint": None, "exit_code": 2}
    BENCH_JSON.validate_python({"error": error})
    with pytest.raises(ValidationError):
        BENCH_JSON.validate_python({"error": error, "schema_version": 1})


def test_schema_in_the_docs_is_that_of_the_code():
    # To write it: json.dumps(BENCH_JSON.json_schema(), indent=2) + "\n".
    assert json.loads(SCHEMA.read_text()) == BENCH_JSON.json_schema()

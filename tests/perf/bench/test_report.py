from __future__ import annotations

import math
from dataclasses import replace

import pytest

from moh_deploy.perf.bench.candidate import RoutingOverhead
from moh_deploy.perf.bench.latency import FreshRun
from moh_deploy.perf.bench.measured import Agreement
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.timing import TimeDifference
from tests.report.json_schema import assert_of_form
from tests.report.samples import bench_report

REPORT = bench_report()
ONE = TimeDifference(0.1, 0.0, 0.2)
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
def test_reports_are_of_the_form(report: BenchReport):
    assert_of_form("bench", report.to_json())

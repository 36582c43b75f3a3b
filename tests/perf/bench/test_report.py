import math
from dataclasses import replace

import pytest

from moh_deploy.perf.bench.candidate import FreshRun, RoutingOverhead
from moh_deploy.perf.bench.gates import GateResult
from moh_deploy.perf.bench.measured import Agreement
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.timing import TimeDifference
from moh_deploy.report.baseline.result import RatchetEntry, RatchetResult
from moh_deploy.report.document import About, Status, no_answer
from moh_deploy.report.junit import junit
from tests.kernel_library import NO_KERNELS
from tests.report.json_schema import assert_of_form
from tests.report.junit_reader import read_outcomes
from tests.report.samples import bench_report
from tests.report.shown import as_junit

REPORT = bench_report()
ONE = TimeDifference(0.1, 0.0, 0.2)
ROUTING = RoutingOverhead("build/model", None, "recorded", {"batch": 4}, ONE, ONE, 0.1, None)


def unknown(report: BenchReport) -> BenchReport:
    """Return it with nothing known that may be unknown."""
    results = [
        replace(
            result,
            fresh=FreshRun(),
            latency=replace(result.latency, p90_ms=None, p99_ms=None, sorted_ms=()),
            agreement=Agreement(math.nan, None, "it has 2 outputs, not 1."),
        )
        for result in report.results
    ]
    routing = replace(ROUTING, wall_ms=None, cpu_ms=None, share=None, reason="no")
    return replace(report, results=tuple(results), routing=(routing,), samples_by=None, gates=())


@pytest.mark.parametrize("report", [REPORT, replace(REPORT, routing=(ROUTING,)), unknown(REPORT)])
def test_reports_are_of_the_form(report: BenchReport):
    assert_of_form("bench", report.to_json())


GATE = GateResult("p50 < 1 s", "m", "recorded", {"batch": 2}, 1.0, 1000.0, True, "it is")
JUDGED = BenchReport((), (), (), "batch", 1, 5.0, 0.5, "a machine", "a runtime", NO_KERNELS)


@pytest.mark.parametrize(
    ("gate", "outcome"),
    [
        (GATE, "passed"),
        (replace(GATE, measured=2000.0, passed=False), "failure"),
        (replace(GATE, measured=None, passed=False), "failure"),
    ],
    ids=["holds", "does not hold", "not measured"],
)
def test_each_gate_is_a_test_case(gate: GateResult, outcome: str):
    found = read_outcomes(as_junit(replace(JUDGED, gates=(GATE, gate)), "m"))
    name = "p50 < 1 s for m on recorded inputs"
    assert found == {"verdict": outcome, f"1: {name}": "passed", f"2: {name}": outcome}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, Status("passed", True)),
        ({"passed": False}, Status("failed", False)),
        ({"passed": False, "measured": None}, Status("not measured", False)),
        ({"passed": False, "limit": None}, Status("not measured", False)),
    ],
)
def test_gate_that_was_not_measured_is_bad(changes: dict[str, object], status: Status):
    document = replace(JUDGED, gates=(replace(GATE, **changes),)).document()
    (table,) = document.blocks[0].blocks
    assert table.rows[0][-1] == status


def test_without_gates_nothing_is_called_passed():
    assert read_outcomes(as_junit(JUDGED, "m")) == {"verdict": "skipped"}


def test_markdown_has_no_markup_of_names():
    """It becomes a comment on a pull request: nobody is called, and no picture is loaded."""
    gate = replace(GATE, contestant="build/@you|<img src=a>_b_", reason="[it](http://a) is")
    text = replace(JUDGED, gates=(gate,)).to_markdown()
    assert "build/\\@you\\|&lt;img src=a>\\_b\\_" in text
    assert "\\[it\\](http://a) is" in text


def test_what_is_worse_than_it_was_is_a_failure():
    entry = RatchetEntry("inputs", "ratio", "worse", 0.5, 0.9, 0.6, "slower")
    report = replace(JUDGED, ratchet=RatchetResult("baseline.json", (entry,), updated=False))
    assert read_outcomes(as_junit(report, "m")) == {
        "verdict": "failure",
        "inputs: ratio": "failure",
    }


def test_run_without_an_answer_is_an_error():
    nothing = no_answer("bench", "it did not finish")
    assert read_outcomes(junit(nothing, About("m"))) == {"run": "error"}


def test_rate_is_of_samples_where_it_is_known_what_they_are():
    report = bench_report()
    assert "| mean ms | samples/s | CPU ms |" in report.to_markdown()
    assert "| mean ms | runs/s | CPU ms |" in replace(report, samples_by=None).to_markdown()

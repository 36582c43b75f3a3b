"""Pages as text; `test_in_browser.py` looks at them."""

import html
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.report.baseline.result import FigureOutcome, RatchetEntry, RatchetResult
from moh_deploy.report.document import About, no_answer
from moh_deploy.report.html.page import page
from moh_deploy.validate.accuracy.metric_parity import ChangedSample
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.parity_result import TokenCount
from moh_deploy.validate.compare.routing_statistics import NO_STATISTICS
from tests.report.samples import bench_report, parity_report, with_accuracy, with_classes
from tests.report.shown import as_page
from tests.validate.compare.test_parity_report import METRIC

RUN = About("build/model", "moh-deploy verify 'build/my model' --html a.html")
HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\ud800"

_VOID = {"meta", "link", "br", "img"}


class Checked(HTMLParser):
    """Reads a page, and that every element is closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def words(page: str) -> str:
    """Return what a reader of the source sees of it: no style, no tags."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


PAGES: dict[str, Callable[[], str]] = {
    "equal": lambda: as_page(parity_report(), RUN),
    "classes": lambda: as_page(with_classes(parity_report()), RUN),
    "not equal": lambda: as_page(parity_report(wrong=1), RUN),
    "accuracy": lambda: as_page(with_accuracy(parity_report()), RUN),
    "bench": lambda: as_page(bench_report(), RUN),
    "no answer": lambda: page(no_answer("verify", "it did not finish"), RUN),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_well_formed_and_need_nothing_else(name: str):
    page = PAGES[name]()
    checked = Checked(page)
    assert not {"script", "img", "iframe", "object", "form"} & set(checked.tags)
    for key, value in checked.attributes:
        assert not key.startswith("on")
        assert key not in ("href", "src") or (value or "").startswith(("data:", "#"))
    assert not re.search(r"@import|url\((?!#)", page)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("content", policy) in checked.attributes


@pytest.mark.parametrize("name", PAGES)
def test_drawings_and_tables_say_what_they_are(name: str):
    page = PAGES[name]()
    drawings = re.findall(r'<svg [^>]*role="img">(<title>)?[^<]', page)
    assert all(drawings)
    assert page.count("<table") == page.count("<caption>")
    assert not re.search(r"<th(?![^>]*scope=)", page.replace("<thead", ""))
    assert re.findall(r"<h1>(.*?)</h1>", page) == ["build/model"]


def hostile_parity() -> ParityReport:
    report = with_accuracy(with_classes(parity_report(wrong=0)))
    metrics = tuple(
        replace(
            metric,
            metric=HOSTILE,
            output=HOSTILE,
            against=HOSTILE,
            changed=(replace(metric.changed[0], file=HOSTILE),),
        )
        for metric in report.accuracy
    )
    layers = tuple(replace(layer, path=HOSTILE, reason=HOSTILE) for layer in report.layers)
    margins = tuple(replace(margin, path=HOSTILE) for margin in report.statistics.margins)
    classes = tuple(
        replace(load, path=HOSTILE, classes=(HOSTILE,) * 3)
        for load in report.statistics.class_loads
    )
    loads = tuple(replace(load, path=HOSTILE) for load in report.statistics.head_loads)
    return replace(
        report,
        reference=HOSTILE,
        policy=HOSTILE,
        notes=(HOSTILE,),
        layers=layers,
        accuracy=metrics,
        outputs=(replace(report.outputs[0], name=HOSTILE, vectors=HOSTILE),),
        statistics=replace(
            report.statistics, head_loads=loads, margins=margins, class_loads=classes
        ),
    )


def hostile_bench() -> BenchReport:
    report = bench_report()
    results = tuple(
        replace(result, contestant=HOSTILE + str(i), inputs=HOSTILE, ratios={})
        for i, result in enumerate(report.results)
    )
    gates = tuple(
        replace(gate, gate=HOSTILE, reason=HOSTILE, passed=False) for gate in report.gates
    )
    work = tuple(replace(item, contestant=HOSTILE) for item in report.work)
    return replace(report, results=results, gates=gates, work=work, machine=HOSTILE)


@pytest.mark.parametrize(
    "make",
    [
        lambda run: as_page(hostile_parity(), run),
        lambda run: as_page(hostile_bench(), run),
        lambda run: page(no_answer("verify", HOSTILE), run),
    ],
)
def test_names_are_text_and_nothing_else(make: Callable[[About], str]):
    page = make(About(HOSTILE, HOSTILE))
    page.encode()  # no halves of surrogate pairs
    assert "\x00" not in page
    tags = Checked(page).tags
    assert "script" not in tags
    assert "img" not in tags
    assert "<script>alert(1)</script>" in html.unescape(page)


def test_verdict_comes_first_with_all_reasons():
    page = as_page(parity_report(wrong=1), RUN)
    text = words(page)
    assert text.index("NOT EQUAL") < text.index("blocks.1.attn") < text.index("max abs error")
    assert "5 of 56 tokens choose other heads" in text
    assert page.index('id="verdict"') < page.index("<table")
    equal = words(as_page(parity_report(), RUN))
    assert "✓ EQUAL" in equal
    # The command can be copied.
    assert "moh-deploy verify 'build/my model' --html a.html" in equal
    assert "Reproduce" not in words(as_page(parity_report(), About("build/model")))


def test_padding_that_was_left_out_is_told_once():
    report = replace(parity_report(), tokens=TokenCount("attention_mask", 56, 9))
    text = words(as_page(report.with_token_notes(), RUN))
    assert text.count("9 of 56 tokens are padding by 'attention_mask'") == 1


def test_many_reasons_are_folded_and_none_is_lost():
    report = parity_report(layers=30)
    layers = tuple(replace(layer, reason=f"reason {i}.") for i, layer in enumerate(report.layers))
    text = words(as_page(replace(report, layers=layers), RUN))
    assert "20 more reasons" in text
    assert all(f"reason {i}." in text for i in range(30))


def test_numbers_that_are_none_are_called_so():
    report = parity_report()
    first, *others = report.layers
    layers = (replace(first, gate_error=math.nan, reason="NaN"), *others)
    outputs = (replace(report.outputs[0], max_abs_error=math.inf, reason="inf"),)
    page = as_page(replace(report, layers=layers, outputs=outputs), RUN)
    assert "error NaN, tolerance 0.0001" in page
    assert "error ∞, tolerance 0.0001" in page
    assert not re.search(r'="[^"]*(nan|inf)\b[^"]*%"', page)


def test_what_was_not_compared_is_not_shown_as_equal():
    engine = replace(parity_report(), layers=(), has_routing=False, statistics=NO_STATISTICS)
    text = words(as_page(engine, RUN))
    assert "Routing was not compared: the reference holds no gates." in text
    assert "100 %" not in text
    nothing = replace(engine, vector_sets=0, outputs=())
    text = words(as_page(nothing, RUN))
    assert "NOT EQUAL" in text
    assert "there are no vectors to compare with" in text
    assert "no data" in text


def test_model_without_moh_layers_has_no_routing_that_agrees():
    ordinary = replace(parity_report(), layers=(), layer_runs=(), statistics=NO_STATISTICS)
    text = words(as_page(ordinary, RUN))
    assert "routing agreement no data flips no data MoH layers on a kernel no layer" in text
    assert "100 %" not in text
    work = replace(bench_report().work[0], layers=())
    assert "Skipped work" not in words(as_page(replace(bench_report(), work=(work,)), RUN))


def test_references_are_shown_one_after_the_other():
    reports = [
        replace(parity_report(wrong=i), reference=name) for i, name in ((None, "a"), (1, "b"))
    ]
    text = words(as_page(combined(reports), RUN))
    assert text.index("Against a") < text.index("Against b")


def test_bench_says_what_its_gates_say():
    text = words(as_page(bench_report(), RUN))
    assert "✓ GATES PASSED" in text
    failed = words(as_page(bench_report(limit_ms=1.0), RUN))
    assert "✗ GATES FAILED" in failed
    assert failed.index("gate 'p50 < 1 ms' failed") < failed.index("Latency")
    shown = "build/model on recorded inputs at batch=4: skipping heads pays"
    assert text.index("What it shows") < text.index(shown) < text.index("Latency")
    ungated = words(as_page(replace(bench_report(), gates=()), RUN))
    assert "MEASURED" in ungated
    assert "nothing is judged" in ungated


def test_bench_without_runs_that_were_kept_says_so():
    report = bench_report()
    results = tuple(
        replace(item, latency=replace(item.latency, sorted_ms=())) for item in report.results
    )
    assert "No data: the times of single runs were not kept." in words(
        as_page(replace(report, results=results), RUN)
    )


ANY = st.floats(width=64) | st.sampled_from([0.0, 1e-5, 1e-4, math.inf, math.nan])


@given(errors=st.lists(ANY, min_size=3, max_size=3), limit=ANY, margin=ANY)
def test_whatever_was_measured_there_is_a_page(errors: list[float], limit: float, margin: float):
    report = parity_report(2)
    layers = tuple(
        replace(
            layer, gate_error=error, gate_tolerance=limit, smallest_margin=margin, agreement=margin
        )
        for layer, error in zip(report.layers, errors, strict=False)
    )
    output = replace(report.outputs[0], max_abs_error=errors[2], max_rel_error=limit)
    page = as_page(replace(report, layers=layers, outputs=(output,)), RUN)
    Checked(page)
    places = re.findall(r' (?:x|x1|x2|cx|width)="([^"]*)%"', page)
    assert places
    assert all(0 <= float(place) <= 100 for place in places)


@pytest.mark.parametrize(
    ("layers", "heads", "most"), [(1, 1, 30_000), (3, 6, 40_000), (100, 64, 600_000)]
)
def test_pages_stay_small(layers: int, heads: int, most: int):
    page = as_page(parity_report(layers, heads, wrong=0), RUN)
    assert len(page.encode()) < most
    assert len(re.findall(r'<t[dh][^>]*class="(?:h\d+|hx|pair)', page)) == layers * heads


def ratchet(outcome: FigureOutcome, limit: float | None = 1.0) -> RatchetResult:
    entry = RatchetEntry("logits", "max_abs_error", outcome, 1.0, 2.0, limit, "it was 1, it is 2")
    return RatchetResult("base<line>.json", (entry,), updated=False)


def test_figures_that_are_worse_than_before_are_no_good_verdict():
    held = words(as_page(replace(parity_report(), ratchet=ratchet("held")), RUN))
    assert "✓ EQUAL" in held
    assert "base<line>.json: 1 held" in held
    worse = words(as_page(replace(parity_report(), ratchet=ratchet("worse")), RUN))
    assert "✗ EQUAL, AND WORSE THAN BEFORE" in worse
    assert worse.index("it was 1, it is 2") < worse.index("max abs error")
    wrong = words(as_page(replace(parity_report(wrong=0), ratchet=ratchet("worse")), RUN))
    assert "✗ NOT EQUAL" in wrong


def test_measured_figures_that_are_worse_than_before_are_no_good_verdict():
    for gates, outcome, word in (
        (True, "held", "✓ GATES PASSED"),
        (True, "worse", "✗ WORSE THAN BEFORE"),
        (False, "held", "✓ NO WORSE THAN BEFORE"),
        (False, "gone", "✗ WORSE THAN BEFORE"),
    ):
        report = replace(bench_report(), ratchet=ratchet(cast(FigureOutcome, outcome)))
        page = as_page(report if gates else replace(report, gates=()), RUN)
        assert word in words(page)
    both = replace(bench_report(limit_ms=1.0), ratchet=ratchet("worse"))
    assert "✗ GATES FAILED" in words(as_page(both, RUN))


def test_accuracy_is_shown_before_errors():
    changed = ChangedSample(3, "a<b>.npz", 1.0, 0.0, 4, 4, 9)
    metric = replace(METRIC, changed=(changed,), verdict="failed", reason="top-1 lost 2 points.")
    page = as_page(replace(parity_report(), accuracy=(METRIC, metric)), RUN)
    text = words(page)
    assert text.index("top-1 lost 2 points.") < text.index("loss as a share")
    assert text.index("loss as a share") < text.index("Error, in order of execution")
    assert "a<b>.npz" in text
    Checked(page)
    assert "Accuracy" not in words(as_page(parity_report(), RUN))
    said = words(as_page(with_accuracy(parity_report()), RUN))
    assert "98.00 % 97.00 % -1.00 points, -2.00 to 0.10 points 0.98 points 360 4, 1 0.375" in said
    assert "NOT EQUAL" in said
    assert "1 of 360 samples has no finite perplexity" in said
    assert "17 val.npz[17] 3 3 8" in said

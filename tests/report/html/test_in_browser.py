"""Pages in Chromium: what a reader sees, and what the browser was asked for."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from playwright.sync_api import Page

from moh_deploy.report.document import About, MarginBin, MarginHistogram, no_answer
from moh_deploy.report.html.page import page as page_of
from moh_deploy.report.html.page import shade
from moh_deploy.validate.compare.parity_report import combined
from tests.decision.cost.files import cost_report
from tests.decision.simulated import decision_report
from tests.handmade_package import without_layers
from tests.nightly import nightly, sampled
from tests.perf.test_optimize_report import REPORT as OPTIMIZED
from tests.perf.test_optimize_report import SEARCH
from tests.report.html.browsing import (
    DESK,
    HEIGHT,
    PHONE,
    Scheme,
    Visits,
    colour_of,
    luminance,
    near,
    pale_texts,
    pixels,
)
from tests.report.html.test_pages import HOSTILE, hostile_bench, hostile_parity
from tests.report.layer_samples import inspected, tuned
from tests.report.samples import bench_report, parity_report, with_accuracy, with_classes
from tests.report.shown import as_page
from tests.validate.bisection.test_report import DIVERGED, REPAIR
from tests.validate.edge_cases import test_report as probed

RUN = About("build/model", "moh-deploy verify build/model --html report.html")
WRONG = with_classes(parity_report(4, 8, wrong=1))
EACH_WRONG = replace(
    parity_report(30),
    reference="another package",
    layers=tuple(
        replace(layer, reason=f"{layer.path} differs.") for layer in parity_report(30).layers
    ),
)
ORDINARY = replace(
    inspected(0), manifest=without_layers(), head_loads=(), predictions=(), speed=None
)
REPAIRED = replace(DIVERGED, repair=REPAIR, why_no_repair=None)
LONG = About("build/" + "a-long-name" * 20, "moh-deploy verify " + "b" * 300)

PAGES: dict[str, Callable[[], str]] = {
    "equal": lambda: as_page(parity_report(), RUN),
    "not equal": lambda: as_page(WRONG, RUN),
    "accuracy": lambda: as_page(with_accuracy(parity_report()), RUN),
    "bench": lambda: as_page(bench_report(), RUN),
    "decision": lambda: as_page(decision_report(), RUN),
    "decision, one point": lambda: as_page(
        decision_report((0.0,), (0.0,), name="-a-long-name" * 20), LONG
    ),
    "cost": lambda: as_page(cost_report(), RUN),
    "cost, a long name": lambda: as_page(cost_report(name="-a-long-name" * 20), LONG),
    "inspect": lambda: as_page(inspected(), RUN),
    "inspect, 32 layers": lambda: as_page(inspected(32, "a.long.name.of" * 5), LONG),
    "inspect, an ordinary model": lambda: as_page(ORDINARY, RUN),
    "probe": lambda: as_page(probed.REPORT, RUN),
    "probe failed": lambda: as_page(replace(probed.REPORT, results=(probed.FAILED,) * 30), LONG),
    "bisect": lambda: as_page(DIVERGED, RUN),
    "bisect repaired": lambda: as_page(REPAIRED, LONG),
    "tune": lambda: as_page(tuned(), RUN),
    "tune, 32 layers": lambda: as_page(tuned(32, "a.long.name.of" * 5), LONG),
    "tune --within": lambda: as_page(SEARCH, RUN),
    "optimize": lambda: as_page(OPTIMIZED, RUN),
    "no answer": lambda: page_of(no_answer("verify", "The comparison did not finish."), RUN),
    "hostile verify": lambda: as_page(hostile_parity(), About(HOSTILE, HOSTILE)),
    "hostile bench": lambda: as_page(hostile_bench(), About(HOSTILE, HOSTILE)),
    "100 layers": lambda: as_page(parity_report(100, 64, wrong=0), LONG),
    "references": lambda: as_page(combined([parity_report(30), EACH_WRONG]), RUN),
    "1 layer": lambda: as_page(parity_report(1, 1), LONG),
}


@cache
def _page(name: str) -> str:
    return PAGES[name]()


@sampled(5)
@pytest.mark.parametrize("name", PAGES)
def test_page_asks_for_nothing_and_fits(visit: Visits, name: str):
    page = visit(_page(name), width=PHONE)
    for width in (PHONE, DESK):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert visit.said[_page(name)] == []


def test_what_a_page_asks_for_would_be_seen_and_its_policy_forbids_it(visit: Visits):
    text = _page("equal").replace("<main>", '<main><img src="other.png"><script>a.b</script>')
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", text)
    visit(without_policy)
    assert any(item.startswith("request: ") for item in visit.said[without_policy])
    assert any(item.startswith("error: ") for item in visit.said[without_policy])
    visit(text)
    assert not any(item.startswith("error: ") for item in visit.said[text])
    forbidden = [item for item in visit.said[text] if "Content Security Policy" in item]
    assert len(forbidden) >= 2  # the picture, the script


@sampled(6)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "name",
    [
        "not equal",
        "references",
        "bench",
        "decision",
        "no answer",
        "inspect",
        "probe",
        "bisect",
        "tune",
        "optimize",
    ],
)
def test_text_stands_out(visit: Visits, name: str, scheme: Scheme):
    assert pale_texts(visit(_page(name), scheme=scheme)) == []


@nightly
def test_pale_text_would_be_seen(visit: Visits):
    text = _page("bench").replace("</style>", ".kind { color: #999; }</style>")
    ((words, contrast),) = pale_texts(visit(text))
    assert (words, round(contrast)) == ("moh-deploy bench", 3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_drawings_stand_out(visit: Visits, scheme: Scheme):
    page = visit(_page("not equal"), scheme=scheme)
    names = ["bars", "mark", "limit", "explained", "unexplained", *(f"s{i}" for i in range(6))]
    back = luminance(colour_of(page, "back"))
    for name in names:
        low, high = sorted([back, luminance(colour_of(page, name))])
        assert (high + 0.05) / (low + 0.05) >= 3, name


def test_light_and_dark_differ_and_paper_is_light(visit: Visits):
    light, dark = (visit(_page("not equal"), scheme=scheme) for scheme in ("light", "dark"))
    brightness = [pixels(page, "header").mean() for page in (light, dark)]
    assert brightness[0] > 0.75
    assert brightness[1] < 0.25
    dark.emulate_media(media="print", color_scheme="dark")
    assert pixels(dark, "h1").mean() > 0.75
    dark.emulate_media(media="screen", color_scheme="dark")


@sampled(4)
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("not equal", "NOT EQUAL"),
        ("equal", "EQUAL"),
        ("bench", "PASSED"),
        ("decision", "WIN"),
        ("inspect", "3 MoH layers"),
        ("probe", "PASSED"),
        ("probe failed", "FAILED"),
        ("bisect", "DIVERGES"),
        ("bisect repaired", "REPAIRED"),
        ("tune", "TUNED"),
        ("tune --within", "CHOSEN"),
        ("no answer", "NO ANSWER"),
    ],
)
def test_verdict_is_on_the_first_screen(visit: Visits, name: str, word: str, width: int):
    verdict = visit(_page(name), width=width).locator("#verdict")
    assert word in verdict.inner_text()
    box = verdict.bounding_box()
    assert box["y"] + box["height"] < HEIGHT


def cells(page: Page, rows: str) -> list[list[str]]:
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    return page.eval_on_selector_all(rows, script)


def test_heat_map_has_a_cell_for_each_head_of_each_layer(visit: Visits):
    page = visit(_page("not equal"))
    rows = [row[1:] for row in cells(page, "#loads-0 tr:not(.heads)")]
    expected = [
        [
            shade(got / load.tokens).text
            if got == known
            else f"{shade(got / load.tokens).text}\n{shade(known / load.tokens).text}"
            for got, known in zip(load.got, load.reference, strict=True)
        ]
        for load in WRONG.statistics.head_loads
    ]
    assert rows == expected
    assert sum(map(len, rows)) == 4 * 8
    assert any("\n" in cell for cell in rows[1])
    assert page.locator("#loads-0 .heads th.shared").count() == 2
    assert page.locator("#classes-0 tr:not(.heads)").count() == 3


def test_table_of_errors_holds_the_numbers_of_the_report(visit: Visits):
    page = visit(_page("not equal"))
    rows = cells(page, "#errors-0 tbody tr")
    expected = [
        [layer.path, "gates", f"{layer.gate_error:.3g}", f"{layer.gate_tolerance:.3g}"]
        for layer in WRONG.layers
    ]
    expected += [
        [output.name, "output", f"{output.max_abs_error:.3g}", f"{output.tolerance:.3g}"]
        for output in WRONG.outputs
    ]
    assert [[*row[:2], *row[3:5]] for row in rows] == expected
    assert [row[5] for row in rows] == ["equal", "differs", "equal", "equal", "equal"]


def test_errors_are_drawn_where_they_lie(visit: Visits):
    page = visit(_page("not equal"))
    track = page.eval_on_selector_all(
        "#errors-0 .track",
        """tracks => tracks.map(track => ['.bar', '.limit'].map(name => {
          const box = track.querySelector(name).getBoundingClientRect();
          return (box.right - track.getBoundingClientRect().left) / track.clientWidth;
        }))""",
    )
    errors = [layer.gate_error for layer in WRONG.layers]
    for (bar, limit), error in zip(track, errors, strict=False):
        assert (bar > limit) == (error > 1e-4)
    # From 1e-6 to 1 there are six decades.
    assert track[2][0] == pytest.approx(math.log10(2) / 6, abs=0.01)
    assert track[1][0] == pytest.approx(math.log10(0.5e6) / 6, abs=0.01)


def test_bench_shows_the_figures_of_the_report(visit: Visits):
    report = bench_report()
    page = visit(_page("bench"))
    rows = cells(page, "#times-0 tbody tr")
    for row, result in zip(rows, report.results, strict=True):
        latency = result.latency
        assert row[:3] == [result.contestant, str(latency.runs), f"{latency.p50_ms:.3g}"]
    speed = page.locator("#speeds-0 tbody tr").inner_text()
    assert f"{1 / report.results[0].ratios['dense'].value:.3f}x" in speed
    assert "faster" in speed
    assert "62.5 %" in page.locator("#work-0").inner_text()


# Screenshots are judged by what their colours mean, not compared with a stored image: fonts and
# their smoothing differ between versions of Chromium, the colours of the style sheet do not.


@sampled(2)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_picture_of_a_verdict_has_its_colour(visit: Visits, scheme: Scheme):
    for name, colour in (("equal", "good-back"), ("not equal", "bad-back"), ("bench", "good-back")):
        page = visit(_page(name), scheme=scheme)
        image = pixels(page, "#verdict")
        assert near(image, colour_of(page, colour)) > 0.5
        assert image.std() > 0.02  # words are on it


@sampled(2)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_picture_of_a_cell_is_as_strong_as_its_load(visit: Visits, scheme: Scheme):
    page = visit(_page("not equal"), scheme=scheme)
    assert page.locator("#loads-0 td.h10").count() > 0
    for level in (5, 6, 10):
        image = pixels(page, f"#loads-0 td.h{level}")
        assert near(image, colour_of(page, f"h{level}")) > 0.4
    steps = [np.mean(colour_of(page, f"h{level}")) for level in range(11)]
    order = steps if scheme == "dark" else steps[::-1]
    assert all(a < b for a, b in pairwise(order))


@nightly
def test_picture_of_margins_shows_tokens_and_each_kind_of_flip(visit: Visits):
    bins = [(0, 0), (2, 0), (0, 2)]  # explained, unexplained
    margins = tuple(
        MarginHistogram(name, 1e-2, (MarginBin(1e-3, 2e-3, 5, *flips),))
        for name, flips in zip("abc", bins, strict=True)
    )
    report = replace(WRONG, statistics=replace(WRONG.statistics, margins=margins))
    page = visit(as_page(report, RUN))
    colours = [colour_of(page, name) for name in ("explained", "unexplained")]
    for number, flips in enumerate(bins, 1):
        image = pixels(page, f"figure:nth-of-type({number}) svg.margins")
        assert near(image, colour_of(page, "bars")) > 0.02
        assert [near(image, colour) > 0.002 for colour in colours] == [count > 0 for count in flips]
    captions = page.locator("figcaption").all_inner_texts()
    assert "2 explained, 0 unexplained" in captions[1]
    assert "0 explained, 2 unexplained" in captions[2]


@nightly
def test_picture_of_latencies_shows_a_line_for_each_contestant(visit: Visits):
    page = visit(_page("bench"))
    image = pixels(page, "svg.lines")
    for series in ("s0", "s1"):
        assert near(image, colour_of(page, series)) > 0.002
    # The faster one rises on the left.
    left, right = image[:, : image.shape[1] // 4], image[:, -image.shape[1] // 4 :]
    assert near(left, colour_of(page, "s0")) > 5 * near(right[30:], colour_of(page, "s0"))


def test_alternatives_lie_where_their_time_and_quality_are(visit: Visits):
    page = visit(_page("decision"))
    places = page.eval_on_selector_all(
        "svg.trade-off circle",
        """circles => circles.map(circle => {
          const box = circle.getBoundingClientRect();
          return [box.left + box.width / 2, box.top + box.height / 2];
        })""",
    )
    alternatives = decision_report().arms
    assert len(places) == len(alternatives) == 4
    by_time = sorted(range(4), key=lambda index: alternatives[index].latency[0].p50_ms)
    assert by_time == sorted(range(4), key=lambda index: places[index][0])
    by_quality = sorted(range(4), key=lambda index: -alternatives[index].quality[0].value)
    assert by_quality == sorted(range(4), key=lambda index: places[index][1])
    image = pixels(page, "svg.trade-off")
    for series in ("s0", "s1", "s2", "s3"):
        assert near(image, colour_of(page, series)) > 0.0005
    assert page.locator("svg.trade-off .promise").count() == 2


def test_decision_shows_the_figures_of_the_report(visit: Visits):
    page = visit(_page("decision"))
    assert "'0' is worth it against 'reference'." in page.locator("#verdict").inner_text()
    assert [row[:2] for row in cells(page, "#alternatives tbody tr")] == [
        ["reference", "reference"],
        ["0", "win"],
        ["1", "loss"],
        ["2", "inconclusive"],
    ]


def test_share_of_open_heads_and_the_break_even_lie_where_they_are(visit: Visits):
    report = inspected()
    page = visit(as_page(replace(report, speed=replace(report.speed, break_even=0.8)), RUN))
    script = """drawing => ['circle.p1', 'line.promise'].map(name => {
      const box = drawing.querySelector(name).getBoundingClientRect();
      const axis = drawing.querySelector('line.as-dense').getBoundingClientRect();
      return ((box.left + box.right) / 2 - axis.left) / axis.width;
    })"""
    places = page.eval_on_selector("svg.trade-off", script)
    assert places == pytest.approx([report.speed.active_share, 0.8], abs=0.005)
    assert near(pixels(page, "svg.trade-off"), colour_of(page, "s0")) > 0.002


def test_time_of_each_layer_is_a_bar_beside_the_line_of_dense(visit: Visits):
    page = visit(_page("tune"))
    rows = cells(page, "#layer-times tbody tr")
    # Weights 1 and 3: (2 + i + 3 * 0.9) / 4 as chosen, (4 + 3) / 4 dense.
    assert [row[3:5] for row in rows] == [
        *([f"{(4.7 + index) / 4:.3g}", "1.75"] for index in range(3)),
        [f"{(3 * 4.7 + 3) / 4:.3g}", "5.25"],
    ]
    assert [row[1] for row in rows] == ["sparse", "sparse", "sparse, unsure", "–"]
    script = """tracks => tracks.map(track => {
      const [bar, limit] = ['.bar', '.limit'].map(name => track.querySelector(name));
      return bar.getBoundingClientRect().width
        / (limit.getBoundingClientRect().left - track.getBoundingClientRect().left);
    })"""
    ratios = page.eval_on_selector_all("#layer-times .track", script)
    assert ratios == pytest.approx([(4.7 + index) / 7 for index in range(3)], abs=0.02)


def test_goal_is_the_title_of_a_decision_and_p_values_are_folded(visit: Visits):
    page = visit(_page("decision"))
    assert page.locator("h1").inner_text() == decision_report().goal
    assert RUN.subject in page.locator(".kind").inner_text()
    assert page.locator("details #p-values").count() == 1
    for label in page.locator("svg.trade-off text").all_text_contents():
        assert label.endswith((" ms", " %")) or label in "1234"

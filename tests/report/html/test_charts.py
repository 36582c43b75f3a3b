import math
import re
from dataclasses import replace

import pytest

from moh_deploy.report.document import (
    HeatMap,
    LatencyChart,
    Line,
    LoadRow,
    MarginBin,
    MarginHistogram,
    Section,
    SpeedChart,
    Table,
    TradeOffChart,
    TradeOffPoint,
)
from moh_deploy.report.html.charts import (
    PageChart,
    decades,
    page_chart,
    page_speed,
    page_trade_off,
    round_numbers,
)
from moh_deploy.report.html.page import Track, page_map, page_margins, page_table, shade
from moh_deploy.report.report import number, share
from tests.report.samples import parity_report

INF, NAN = math.inf, math.nan


def test_decades_hold_all_numbers_and_leave_out_what_has_no_place():
    scale = decades([3e-6, 0.0, NAN, INF, 2e-4])
    assert (scale.low, scale.high) == pytest.approx((1e-6, 1e-3))
    assert [tick.label for tick in scale.ticks] == ["1e-6", "1e-5", "1e-4", "0.001"]
    assert scale.at(1e-6) == 0
    assert scale.at(1e-4) == pytest.approx(200 / 3, abs=0.01)
    assert (scale.at(0.0), scale.at(5.0)) == (0, 100)


@pytest.mark.parametrize(
    "values",
    [[], [0.0], [NAN], [1.0], [1.0, 1.0], [1e-300, 1e300], [5e-324], [1.7e308], [5e-324, 1.7e308]],
)
def test_decades_of_few_or_far_numbers_are_an_axis(values: list[float]):
    scale = decades(values)
    assert scale.high > scale.low > 0
    assert 2 <= len(scale.ticks) <= 7
    assert all(0 <= scale.at(value) <= 100 for value in values if math.isfinite(value))


@pytest.mark.parametrize(
    ("low", "high", "is_log", "labels"),
    [
        (0.9, 12.0, True, ["1", "2", "5", "10"]),
        (1.02, 1.32, True, ["1.1", "1.2", "1.3"]),
        (0.004, 9.0, True, ["0.01", "0.1", "1"]),
        (2e-6, 9e4, True, ["0.0001", "0.01", "1", "100", "10000"]),
        (2.0, 2.6, False, ["2", "2.2", "2.4", "2.6"]),
        (0.0, 100.0, False, ["0", "20", "40", "60", "80", "100"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, is_log: bool, labels: list[str]):
    scale = round_numbers(low, high, is_log=is_log)
    assert [tick.label for tick in scale.ticks] == labels
    assert all(0 <= tick.at <= 100 for tick in scale.ticks)
    assert [tick.at for tick in scale.ticks] == [scale.at(float(item)) for item in labels]


@pytest.mark.parametrize("number", [0.0, 3.0])
def test_axis_of_one_number_has_room_on_both_sides(number: float):
    scale = round_numbers(number, number, is_log=False)
    assert 40 < scale.at(number) < 60


@pytest.mark.parametrize(
    ("share", "level", "text"),
    [
        (0.0, 0, "0"),
        (0.001, 1, "<1"),
        (0.1, 2, "10"),
        (0.55, 6, "55"),
        (0.999, 10, ">99"),
        (1.0, 10, "100"),
        (None, None, "–"),
    ],
)
def test_shares_near_the_ends_say_that_they_are_not_there(
    share: float | None, level: int | None, text: str
):
    assert (shade(share).level, shade(share).text) == (level, text)


def heat(*rows: LoadRow) -> HeatMap:
    return HeatMap("loads", "layer", rows)


def test_layers_with_other_heads_are_other_blocks():
    rows = [
        LoadRow(name, 4, (4,) * heads, (4,) * heads, shared)
        for name, heads, shared in (("a", 2, 1), ("b", 2, 1), ("c", 3, 1), ("d", 3, None))
    ]
    blocks = page_map(heat(*rows)).blocks
    assert [[row.name for row in block.rows] for block in blocks] == [["a", "b"], ["c"], ["d"]]
    assert [list(block.shared) for block in blocks] == [[0], [0], []]
    assert [list(block.routed) for block in blocks] == [[1], [1, 2], [0, 1, 2]]
    assert [block.knows_shared for block in blocks] == [True, True, False]


def test_cell_that_differs_has_both_numbers_even_if_they_look_alike():
    shown = page_map(heat(LoadRow("a", 1000, (500, 500), (500, 501), None)))
    same, other = shown.blocks[0].rows[0].cells
    assert (same.reference, other.reference) == (None, shade(0.501))
    assert other.package == shade(0.5)
    assert other.words == "on for 500 of 1000 tokens in the package, for 501 in the reference"
    nothing = page_map(heat(LoadRow("a", 0, (0,), (0,), None))).blocks[0].rows[0].cells
    assert nothing[0].package.level is None


def test_flips_hang_below_the_axis_on_their_side_of_the_bound():
    bars = (
        MarginBin(0.0, 1e-8, 3, 1, 0),
        MarginBin(1e-4, 2e-4, 10, 2, 0),
        MarginBin(1e-1, 2e-1, 20, 0, 4),
        MarginBin(INF, INF, 5, 0, 1),
    )
    (chart,) = page_margins([MarginHistogram("a", 1e-2, bars)])
    assert (chart.tokens, chart.explained, chart.unexplained) == (38, 3, 5)
    tokens = [bar for bar in chart.bars if bar.kind == "tokens"]
    flips = [bar for bar in chart.bars if bar.kind != "tokens"]
    assert all(bar.y < 0 and bar.y + bar.height == 0 for bar in tokens)
    assert all(bar.y >= 0 for bar in flips)
    assert max(tokens, key=lambda bar: bar.height).words.endswith("20 tokens")
    for bar in chart.bars:
        assert 0 <= bar.x < bar.x + bar.width <= 100
    for bar in flips:
        assert (bar.x > chart.bound_at) == (bar.kind == "unexplained")
    assert [chart.ticks[0].label, chart.ticks[-1].label] == ["tie", "none"]


def test_charts_of_all_layers_share_an_axis():
    low = MarginHistogram("a", 1e-2, (MarginBin(1e-3, 2e-3, 1, 0, 0),))
    high = replace(low, path="b", bins=(MarginBin(1e-1, 2e-1, 1, 0, 0),))
    first, second = page_margins([low, high])
    assert first.bound_at == second.bound_at
    assert first.bars[0].x < second.bars[0].x
    (nothing,) = page_margins([replace(low, bins=())])
    assert nothing.bars == ()


def latency(*sorted_ms: float) -> PageChart:
    return page_chart(LatencyChart("recorded", (Line("a", "2 runs", sorted_ms),)))


def test_latency_line_rises_by_a_run_at_its_time():
    chart = latency(1.0, 2.0, 3.0, 5.0)
    assert chart.lines[0].path == "M0 1000H0V750H250V500H500V250H1000V0H1000"
    assert not chart.scale.is_log
    assert latency(1.0, 10.0).scale.is_log
    assert re.fullmatch(r"M0 1000H4\d\dV500H4\d\dV0H1000", latency(2.0, 2.0).lines[0].path)


@pytest.mark.parametrize(
    ("error", "end", "is_bad"),
    [(0.0, 0.0, False), (5e-4, None, True), (INF, 100.0, True), (NAN, None, None)],
)
def test_error_ends_beyond_its_tolerance_if_it_is_larger(
    error: float, end: float | None, is_bad: bool | None
):
    report = parity_report(1)
    layer = replace(report.layers[0], gate_error=error)
    blocks = replace(report, layers=(layer,)).document().blocks
    (errors,) = (block for block in blocks if isinstance(block, Section) and "Error" in block.title)
    (table,) = (block for block in errors.blocks if isinstance(block, Table))
    track = page_table(table).rows[0][2]
    assert isinstance(track, Track)
    kinds = [mark.kind for mark in track.marks]
    limit = track.marks[-1]
    assert limit.kind == "limit"
    if math.isnan(error):
        assert kinds == ["limit"]
        return
    bar = track.marks[0]
    assert kinds == ["bar", "dot", "limit"]
    assert bar.is_bad == is_bad
    assert (bar.end > limit.start) == is_bad
    assert end is None or bar.end == end


@pytest.mark.parametrize(
    ("found", "text"),
    [
        *zip(
            map(number, (NAN, INF, -INF, 0.00012345)), ("NaN", "∞", "-∞", "0.000123"), strict=True
        ),
        (number(None), None),
        # Only all is called all.
        (share(1.0), "100 %"),
        (share(0.99999), ">99.9 %"),
        (share(0.625), "62.5 %"),
        (share(1e-9), "<0.1 %"),
        (share(0.0), "0 %"),
        (share(NAN), "NaN"),
        (share(None), None),
    ],
)
def test_numbers_have_three_digits(found: str | None, text: str | None):
    assert found == text


def chart(*points: tuple[float, float], **changes: object) -> TradeOffChart:
    made = tuple(TradeOffPoint(str(place), "", *point) for place, point in enumerate(points))
    return TradeOffChart("t", "ms", "top-1", made, **changes)


def test_up_is_better_and_left_is_faster():
    low, high = page_trade_off(chart((2.0, 0.8), (4.0, 0.9))).points
    assert low.x < high.x
    assert low.y > high.y
    low, high = page_trade_off(chart((2.0, 0.8), (4.0, 0.9), lower_is_better=True)).points
    assert low.y < high.y


@pytest.mark.parametrize("times", [(1.0, 10.0, 100.0), (1.0, 2.0, 3.0)])
def test_times_that_are_ratios_apart_lie_by_their_ratios(times: tuple[float, ...]):
    first, second, third = page_trade_off(chart(*((time, 0.8) for time in times))).points
    assert second.x - first.x == pytest.approx(third.x - second.x, abs=0.05)


def test_what_is_promised_is_on_the_axes_whatever_the_points_are():
    laid_out = page_trade_off(chart((2.0, 0.8), x_limit=1.0, y_limit=0.5))
    assert laid_out.x_limit is not None
    assert laid_out.y_limit is not None
    assert 0 < laid_out.x_limit < laid_out.points[0].x < 100
    assert laid_out.points[0].y < laid_out.y_limit < 100


@pytest.mark.parametrize(("y_is_share", "label"), [(True, "60 %"), (False, "0.6")])
def test_shares_are_in_percent(y_is_share: bool, label: str):
    laid_out = page_trade_off(chart((1, 0.5), (2, 1.0), y_is_share=y_is_share))
    assert label in [tick.label for tick in laid_out.y_ticks]


def test_one_point_has_room_around_it():
    (only,) = page_trade_off(chart((2.0, 0.8))).points
    assert 10 < only.x < 90
    assert 10 < only.y < 80


def speed(break_even: float | None) -> SpeedChart:
    return SpeedChart("t", "s", ((0.5, 2.0), (1.0, 0.5)), (0.75, 1.0), break_even)


def test_speed_lies_above_dense_left_of_the_break_even():
    laid_out = page_speed(speed(0.75))
    assert laid_out.own == (75.0, laid_out.dense)
    assert (laid_out.break_even, laid_out.words) == (75.0, "break-even: 75.0 % open")
    first, last = (part.split() for part in laid_out.path.removeprefix("M").split("L"))
    assert [first[0], last[0]] == ["500", "1000"]
    assert int(first[1]) < 10 * laid_out.dense < int(last[1])
    assert all(tick.label.endswith("x") for tick in laid_out.y_ticks)


@pytest.mark.parametrize(("share", "word"), [(None, "dense is faster"), (1.0, "faster than dense")])
def test_break_even_that_there_is_not_is_not_drawn(share: float | None, word: str):
    laid_out = page_speed(speed(share))
    assert laid_out.break_even is None
    assert laid_out.words == f"no break-even: {word} at every share"


def test_time_has_its_unit_on_the_axis():
    assert all(
        tick.label.endswith(" ms")
        for tick in page_trade_off(chart((2.0, 0.8), x_unit="ms")).x_ticks
    )

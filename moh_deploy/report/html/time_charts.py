"""Quality against time: where each contestant lies, with its intervals, and what was promised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moh_deploy.report.document import LatencyChart, Line, TradeOffChart, TradeOffPoint
from moh_deploy.report.html.scales import Scale, Tick, round_numbers

# How the times of single runs are distributed: the share of runs that took no longer.

_UNITS = 1000  # of the drawing, in both directions
_LATENCY_CHART_LOG_FROM = 5.0  # slowest over fastest run


@dataclass(frozen=True)
class PagePath:
    """A line of the drawing.

    Attributes:
        line: What it is of.
        path: In thousandths of width and height, as SVG writes paths.
    """

    line: Line
    path: str


@dataclass(frozen=True)
class PageChart:
    """A chart laid out.

    Attributes:
        title: What it is of.
        lines: One a contestant.
        scale: Of milliseconds.
    """

    title: str
    lines: tuple[PagePath, ...]
    scale: Scale


def page_chart(chart: LatencyChart) -> PageChart:
    """Lay out the distributions of all contestants on one axis."""
    times = [ms for line in chart.lines for ms in line.sorted_ms]
    low, high = min(times), max(times)
    scale = round_numbers(low, high, is_log=low > 0 and high > _LATENCY_CHART_LOG_FROM * low)
    lines = tuple(PagePath(line, _path(line.sorted_ms, scale)) for line in chart.lines)
    return PageChart(chart.title, lines, scale)


def _path(times: Sequence[float], scale: Scale) -> str:
    """Return a staircase: at the time of a run, the share rises by that run."""
    steps = [f"M0 {_UNITS}"]
    for index, ms in enumerate(times, 1):
        x, y = scale.at(ms) * _UNITS / 100, _UNITS * (1 - index / len(times))
        steps.append(f"H{x:.0f}V{y:.0f}")
    steps.append(f"H{_UNITS}")
    return "".join(steps)


# Room on both sides of what is drawn, as a share of it: nothing lies on the edge.
_ROOM = 0.06
_LOG_FROM = 5.0  # longest over shortest time
# The lowest part of the drawing is for the labels of the axis.
_HEIGHT, _TOP = 0.86, 2.0


@dataclass(frozen=True)
class PagePoint:
    """A contestant in the drawing, everything in percent of width and height.

    Attributes:
        point: What it is of.
        x: Of its mark.
        y: Likewise, from the top.
        x_interval: Ends of the interval of the time.
        y_interval: Ends of that of the quality.
    """

    point: TradeOffPoint
    x: float
    y: float
    x_interval: tuple[float, float] | None
    y_interval: tuple[float, float] | None


@dataclass(frozen=True)
class PageTradeOff:
    """A chart laid out.

    Attributes:
        content: What it shows.
        points: One a contestant.
        x_ticks: Labelled places from left to right.
        y_ticks: The same from the top, of the axis of quality.
        x_limit: Where the promised time lies; None if nothing was promised.
        y_limit: The same of the promised quality.
    """

    content: TradeOffChart
    points: tuple[PagePoint, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_limit: float | None
    y_limit: float | None


def page_trade_off(chart: TradeOffChart) -> PageTradeOff:
    """Lay out all contestants on two axes; up is better, and left is faster."""
    xs = _scale(
        [(point.x, point.x_interval) for point in chart.points], chart.x_limit, may_be_log=True
    )
    ys = _scale([(point.y, point.y_interval) for point in chart.points], chart.y_limit)

    def down(value: float) -> float:
        at = ys.at(value)
        return round((at if chart.lower_is_better else 100 - at) * _HEIGHT + _TOP, 2)

    def both(
        place: Callable[[float], float], of: tuple[float, float] | None
    ) -> tuple[float, float] | None:
        return None if of is None else (place(of[0]), place(of[1]))

    points = tuple(
        PagePoint(
            point,
            xs.at(point.x),
            down(point.y),
            both(xs.at, point.x_interval),
            both(down, point.y_interval),
        )
        for point in chart.points
    )
    numbers = [ys.low + (ys.high - ys.low) * tick.at / 100 for tick in ys.ticks]
    labels = [
        f"{100 * number:.4g} %" if chart.y_is_share else f"{number:.4g}" for number in numbers
    ]
    y_ticks = tuple(
        Tick(down(number), label) for number, label in zip(numbers, labels, strict=True)
    )
    return PageTradeOff(
        chart,
        points,
        xs.ticks,
        y_ticks,
        None if chart.x_limit is None else xs.at(chart.x_limit),
        None if chart.y_limit is None else down(chart.y_limit),
    )


def _scale(
    values: list[tuple[float, tuple[float, float] | None]],
    limit: float | None,
    *,
    may_be_log: bool = False,
) -> Scale:
    every = [item for value, interval in values for item in (value, *(interval or ()))]
    every += [] if limit is None else [limit]
    low, high = min(every), max(every)
    # Of times that are ratios apart, the short ones would all lie on one another.
    if may_be_log and low > 0 and high > _LOG_FROM * low:
        room = (high / low) ** _ROOM
        return round_numbers(low / room, high * room, is_log=True, most_ticks=5)
    room = _ROOM * (high - low)
    return round_numbers(low - room, high + room, is_log=False, most_ticks=5)

"""Charts of time: how single runs are distributed, and quality against time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moh_deploy.report.document import LatencyChart, Line, TradeOffChart, TradeOffPoint
from moh_deploy.report.html.scales import Scale, Tick, round_numbers

_UNITS = 1000  # of the drawing of a distribution, in both directions
_LOG_FROM = 5.0  # longest over shortest time
# Room on both sides of the points that are drawn, as a share of it: nothing lies on the edge.
_ROOM = 0.06
# The lowest part of the drawing is for the labels of the axis.
_HEIGHT, _TOP = 0.86, 2.0

_Interval = tuple[float, float]


@dataclass(frozen=True)
class PagePath:
    """A line of the drawing, in thousandths of width and height, as SVG writes paths."""

    line: Line
    path: str


@dataclass(frozen=True)
class PageChart:
    """A chart laid out on a scale of milliseconds."""

    title: str
    lines: tuple[PagePath, ...]
    scale: Scale


def page_chart(chart: LatencyChart) -> PageChart:
    """Lay out the distributions of all candidates on one axis."""
    times = [ms for line in chart.lines for ms in line.sorted_ms]
    low, high = min(times), max(times)
    scale = round_numbers(low, high, is_log=low > 0 and high > _LOG_FROM * low)
    lines = []
    for line in chart.lines:
        # A staircase: at the time of a run, the share of runs that took no longer rises.
        steps = [f"M0 {_UNITS}"]
        for index, ms in enumerate(line.sorted_ms, 1):
            x, y = scale.at(ms) * _UNITS / 100, _UNITS * (1 - index / len(line.sorted_ms))
            steps.append(f"H{x:.0f}V{y:.0f}")
        lines.append(PagePath(line, "".join([*steps, f"H{_UNITS}"])))
    return PageChart(chart.title, tuple(lines), scale)


@dataclass(frozen=True)
class PagePoint:
    """A candidate in the drawing, everything in percent of width and of height, from the top."""

    point: TradeOffPoint
    x: float
    y: float
    x_interval: _Interval | None
    y_interval: _Interval | None


@dataclass(frozen=True)
class PageTradeOff:
    """A chart laid out; limits lie where something was promised."""

    content: TradeOffChart
    points: tuple[PagePoint, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_limit: float | None
    y_limit: float | None


def page_trade_off(chart: TradeOffChart) -> PageTradeOff:
    """Lay out all candidates on two axes; up is better, and left is faster."""
    xs = _scale([(p.x, p.x_interval) for p in chart.points], chart.x_limit, may_be_log=True)
    ys = _scale([(p.y, p.y_interval) for p in chart.points], chart.y_limit)

    def down(value: float) -> float:
        at = ys.at(value)
        return round((at if chart.lower_is_better else 100 - at) * _HEIGHT + _TOP, 2)

    def both(place: Callable[[float], float], ends: _Interval | None) -> _Interval | None:
        return None if ends is None else (place(ends[0]), place(ends[1]))

    points = []
    for point in chart.points:
        intervals = both(xs.at, point.x_interval), both(down, point.y_interval)
        points.append(PagePoint(point, xs.at(point.x), down(point.y), *intervals))
    y_ticks = []
    for tick in ys.ticks:
        number = ys.low + (ys.high - ys.low) * tick.at / 100
        label = f"{100 * number:.4g} %" if chart.y_is_share else f"{number:.4g}"
        y_ticks.append(Tick(down(number), label))
    x_limit = None if chart.x_limit is None else xs.at(chart.x_limit)
    y_limit = None if chart.y_limit is None else down(chart.y_limit)
    return PageTradeOff(chart, tuple(points), xs.ticks, tuple(y_ticks), x_limit, y_limit)


def _scale(
    values: Sequence[tuple[float, _Interval | None]],
    limit: float | None,
    *,
    may_be_log: bool = False,
) -> Scale:
    every = [number for value, interval in values for number in (value, *(interval or ()))]
    every += [] if limit is None else [limit]
    low, high = min(every), max(every)
    # Of times that are ratios apart, the short ones would all lie on one another.
    if may_be_log and low > 0 and high > _LOG_FROM * low:
        room = (high / low) ** _ROOM
        return round_numbers(low / room, high * room, is_log=True, most_ticks=5)
    room = _ROOM * (high - low)
    return round_numbers(low - room, high + room, is_log=False, most_ticks=5)

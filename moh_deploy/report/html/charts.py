"""Where numbers lie on an axis, in percent of its length: drawings grow with the page."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from moh_deploy.report.document import (
    LatencyChart,
    Line,
    SpeedChart,
    TradeOffChart,
    TradeOffPoint,
)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float  # In percent of the axis
    label: str


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float  # Left end, above 0 on a logarithmic axis
    high: float  # Right end, above `low`
    ticks: tuple[Tick, ...]  # Labelled places, ascending
    is_log: bool  # Equal ratios are equally far apart, not equal differences

    def at(self, value: float) -> float:
        """Return where a number lies, in percent; what lies outside is at the nearer end."""
        if self.is_log and value <= 0:
            return 0.0
        return round(100 * min(1.0, max(0.0, _share(self.low, self.high, value, self.is_log))), 2)


def decades(values: Iterable[float], *, most_ticks: int = 6) -> Scale:
    """Return a logarithmic axis of whole decades that holds all values; 0, NaN, infinity aside."""
    logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)] or [0.0]
    # What float64 holds at its very ends is drawn at those of the axis.
    first = min(299, max(-300, math.floor(min(logs))))
    last = max(first + 1, min(300, math.ceil(max(logs))))
    step = math.ceil((last - first) / (most_ticks - 1))
    span = last - first
    ticks = tuple(
        Tick(
            round(100 * (power - first) / span, 2),
            f"{10.0**power:g}" if -3 <= power <= 3 else f"1e{power}",
        )
        for power in range(first, last + 1, step)
    )
    return Scale(10.0**first, 10.0**last, ticks, is_log=True)


def round_numbers(low: float, high: float, *, is_log: bool, most_ticks: int = 6) -> Scale:
    """Return an axis that holds both numbers, with ticks at round ones."""
    if not high > low:
        low, high = (low / 1.1, high * 1.1) if low > 0 else (low - 1, high + 1)
    numbers = _numbers(low, high, is_log=is_log, most=most_ticks)
    ticks = tuple(
        Tick(round(100 * _share(low, high, number, is_log), 2), f"{number:.6g}")
        for number in numbers
    )
    return Scale(low, high, ticks, is_log)


def _share(low: float, high: float, value: float, is_log: bool) -> float:
    if is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _numbers(low: float, high: float, *, is_log: bool, most: int) -> list[float]:
    """Return round numbers between the two: 1, 2, 5, 10, or 1, 10, or 1, 100, or equal steps."""
    if is_log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for digits, step in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
            powers = range(first, last + 1, step)
            every = [digit * 10.0**power for power in powers for digit in digits]
            numbers = [value for value in every if low <= value <= high]
            if 2 <= len(numbers) <= most + 1:
                return numbers
    return _steps(low, high, most)


def _steps(low: float, high: float, most: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten between the two."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [number * step for number in range(first, last + 1)]


def _power(power: int) -> str:
    return f"{10.0**power:g}" if -3 <= power <= 3 else f"1e{power}"


# Charts of time: how single runs are distributed, quality against time, speed against open heads.

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
    unit = f" {chart.x_unit}" if chart.x_unit else ""
    x_ticks = tuple(Tick(tick.at, f"{tick.label}{unit}") for tick in xs.ticks)
    x_limit = None if chart.x_limit is None else xs.at(chart.x_limit)
    y_limit = None if chart.y_limit is None else down(chart.y_limit)
    return PageTradeOff(chart, tuple(points), x_ticks, tuple(y_ticks), x_limit, y_limit)


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


@dataclass(frozen=True)
class PageSpeed:
    """A chart laid out, everything in percent of width and of height, from the top."""

    content: SpeedChart
    path: str  # The curve, in thousandths, as SVG writes paths
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dense: float  # Height at which it is as fast as dense
    own: tuple[float, float]
    break_even: float | None  # Where there is one
    words: str  # The same in words


def page_speed(chart: SpeedChart) -> PageSpeed:
    """Lay out speed by the share of open heads, from 0 to 100 %; up is faster."""
    # As fast as dense is on the axis, whatever the curve is.
    speeds = _scale([(y, None) for _, y in (*chart.points, chart.own)], 1.0, may_be_log=True)

    def down(speed: float) -> float:
        return round((100 - speeds.at(speed)) * _HEIGHT + _TOP, 2)

    places = (f"{_UNITS * x:.0f} {_UNITS * down(y) / 100:.0f}" for x, y in chart.points)
    ticks = (Tick((100 - tick.at) * _HEIGHT + _TOP, f"{tick.label}x") for tick in speeds.ticks)
    return PageSpeed(
        chart,
        f"M{'L'.join(places)}",
        tuple(Tick(share, f"{share:.0f} %") for share in (0.0, 25.0, 50.0, 75.0, 100.0)),
        tuple(Tick(round(tick.at, 2), tick.label) for tick in ticks),
        down(1.0),
        (round(100 * chart.own[0], 2), down(chart.own[1])),
        *_break_even(chart.break_even),
    )


def _break_even(share: float | None) -> tuple[float | None, str]:
    """Return where it is drawn, and what is said of it."""
    if share is None:
        return None, "no break-even: dense is faster at every share"
    if share == 1:
        return None, "no break-even: faster than dense at every share"
    return round(100 * share, 2), f"break-even: {100 * share:.1f} % open"

"""How the times of single runs are distributed: the share of runs that took no longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.report.charts import LatencyChart, Line
from moh_deploy.report.html.scales import Scale, round_numbers

_UNITS = 1000  # of the drawing, in both directions
_LOG_FROM = 5.0  # slowest over fastest run


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
    scale = round_numbers(low, high, is_log=low > 0 and high > _LOG_FROM * low)
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

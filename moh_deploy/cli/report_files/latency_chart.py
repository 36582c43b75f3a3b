"""How the times of single runs are distributed: the share of runs that took no longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.perf.bench.measured import Measured
from moh_deploy.report.html.scales import Scale, round_numbers

_UNITS = 1000  # of the drawing, in both directions
_LOG_FROM = 5.0  # slowest over fastest run


@dataclass(frozen=True)
class Line:
    """One contestant.

    Attributes:
        name: It.
        path: Its line, in thousandths of width and height, as SVG writes paths.
        summary: What stands beside the name.
    """

    name: str
    path: str
    summary: str


@dataclass(frozen=True)
class LatencyChart:
    """The contestants on one set of inputs.

    Attributes:
        lines: One a contestant that kept its runs.
        scale: Of milliseconds.
    """

    lines: tuple[Line, ...]
    scale: Scale


def latency_chart(results: Sequence[Measured]) -> LatencyChart | None:
    """Return the distributions, or None if no contestant kept its runs."""
    times = [ms for one in results for ms in one.latency.sorted_ms]
    if not times:
        return None
    low, high = min(times), max(times)
    scale = round_numbers(low, high, is_log=low > 0 and high > _LOG_FROM * low)
    kept = [one for one in results if one.latency.sorted_ms]
    return LatencyChart(tuple(_line(one, scale) for one in kept), scale)


def _line(one: Measured, scale: Scale) -> Line:
    """Return a staircase: at the time of a run, the share rises by that run."""
    times = one.latency.sorted_ms
    steps = [f"M0 {_UNITS}"]
    for index, ms in enumerate(times, 1):
        x, y = scale.at(ms) * _UNITS / 100, _UNITS * (1 - index / len(times))
        steps.append(f"H{x:.0f}V{y:.0f}")
    steps.append(f"H{_UNITS}")
    return Line(
        one.contestant, "".join(steps), f"{one.latency.runs} runs, p50 {one.latency.p50_ms:.3g} ms"
    )

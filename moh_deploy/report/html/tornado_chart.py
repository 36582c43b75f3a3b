"""What an answer depends on: bars around it, one for each input, on one axis."""

from __future__ import annotations

from dataclasses import dataclass

from moh_deploy.report.charts import TornadoBar, TornadoChart
from moh_deploy.report.html.scales import Scale, Tick, round_numbers

_ROOM = 0.04


@dataclass(frozen=True)
class HalfBar:
    """One half of a bar, in percent of the axis."""

    x: float
    width: float


@dataclass(frozen=True)
class PageTornadoBar:
    """An input in the drawing.

    Attributes:
        bar: What it is of.
        low: From the answer as it is to that with the input at its low end.
        high: The same of its high end.
    """

    bar: TornadoBar
    low: HalfBar
    high: HalfBar

    @property
    def words(self) -> str:
        """What the drawing says."""
        bar = self.bar
        return f"{bar.name}, {bar.words}: {bar.at_low:.4g} to {bar.at_high:.4g}"


@dataclass(frozen=True)
class PageTornado:
    """A chart laid out.

    Attributes:
        content: What it shows.
        bars: One an input.
        value: Where the answer as it is lies.
        zero: Where nothing is; None where the axis does not reach it.
        ticks: Labelled places.
    """

    content: TornadoChart
    bars: tuple[PageTornadoBar, ...]
    value: float
    zero: float | None
    ticks: tuple[Tick, ...]


def page_tornado(chart: TornadoChart) -> PageTornado:
    """Lay out all inputs on one axis."""
    every = [chart.value, *(end for bar in chart.bars for end in (bar.at_low, bar.at_high))]
    room = _ROOM * (max(every) - min(every))
    scale = round_numbers(min(every) - room, max(every) + room, is_log=False, most_ticks=5)
    bars = tuple(
        PageTornadoBar(
            bar, _side(scale, chart.value, bar.at_low), _side(scale, chart.value, bar.at_high)
        )
        for bar in chart.bars
    )
    zero = scale.at(0.0) if scale.low < 0 < scale.high else None
    return PageTornado(chart, bars, scale.at(chart.value), zero, scale.ticks)


def _side(scale: Scale, value: float, end: float) -> HalfBar:
    left, right = sorted((scale.at(value), scale.at(end)))
    return HalfBar(left, round(right - left, 2))

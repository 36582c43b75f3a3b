"""Loads of heads as a table of coloured numbers: layers, or classes of samples, by heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from moh_deploy.report.document import HeatMap, LoadRow, MarginBin, MarginHistogram
from moh_deploy.report.html.scales import Scale, Tick, decades
from moh_deploy.report.numbers import count

# How clear the choices of each layer are: tokens by margin, with the flips below the axis.

_TOP, _DEPTH = 60.0, 24.0  # px that the most tokens rise and that the most flips hang
_LEFT, _RIGHT = 7.0, 9.0  # percent for exact ties, and for tokens without a margin
_GAP = 1.0


@dataclass(frozen=True)
class Bar:
    """A bar; `x` and `width` are in percent of the chart, `y` and `height` in px from the axis.

    Attributes:
        kind: `tokens`, `explained` or `unexplained`.
        words: What it counts.
    """

    kind: str
    x: float
    width: float
    y: float
    height: float
    words: str


@dataclass(frozen=True)
class PageMargins:
    """One layer.

    Attributes:
        name: The layer.
        bars: Tokens above the axis, flips below it.
        bound: Rounding explains flips of tokens with a smaller margin.
        bound_at: Where that is, in percent.
        ticks: Places on the axis.
        tokens: How many there are.
        explained: Flips below the bound.
        unexplained: Flips above it.
    """

    name: str
    bars: tuple[Bar, ...]
    bound: float
    bound_at: float
    ticks: tuple[Tick, ...]
    tokens: int
    explained: int
    unexplained: int

    @property
    def words(self) -> str:
        """Return what the drawing says."""
        return (
            f"{count(self.tokens, 'token')}; flips: {self.explained} explained,"
            f" {self.unexplained} unexplained; bound {self.bound:.3g}"
        )


def page_margins(layers: Sequence[MarginHistogram]) -> list[PageMargins]:
    """Return a chart of each layer, all on one axis."""
    every = [margin_bin for each in layers for margin_bin in each.bins]
    edges = [edge for margin_bin in every for edge in (margin_bin.at_least, margin_bin.below)]
    axis = _Axis(
        decades([*edges, *(each.bound / 10 for each in layers)]),
        left=_LEFT if any(margin_bin.at_least == 0 for margin_bin in every) else 0.0,
        right=_RIGHT if any(math.isinf(margin_bin.at_least) for margin_bin in every) else 0.0,
    )
    return [_chart(each, axis) for each in layers]


@dataclass(frozen=True)
class _Axis:
    scale: Scale
    left: float
    right: float

    def at(self, value: float) -> float:
        width = 100 - self.left - self.right
        return self.left + self.scale.at(value) * width / 100

    def span(self, margin_bin: MarginBin) -> tuple[float, float]:
        """Return where a bar lies and how wide it is."""
        if margin_bin.at_least == 0:
            return 0.0, self.left - 2 * _GAP
        if math.isinf(margin_bin.at_least):
            return 100 - self.right + 2 * _GAP, self.right - 2 * _GAP
        start, end = self.at(margin_bin.at_least), self.at(min(margin_bin.below, self.scale.high))
        return start, max(0.5, end - start - _GAP / 4)

    def ticks(self) -> tuple[Tick, ...]:
        """Return those of the scale that stand free of the labels beside it."""
        placed = (
            replace(tick, at=round(self.at(_value(tick, self.scale)), 2))
            for tick in self.scale.ticks
        )
        free = [tick for tick in placed if 2 * self.left <= tick.at <= 100 - 2 * self.right]
        first = [Tick(0.0, "tie")] if self.left else []
        last = [Tick(100.0, "none")] if self.right else []
        return (*first, *free, *last)


def _value(tick: Tick, scale: Scale) -> float:
    return scale.low * math.pow(scale.high / scale.low, tick.at / 100)


def _chart(margin_histogram: MarginHistogram, axis: _Axis) -> PageMargins:
    most = max((each.tokens for each in margin_histogram.bins), default=1)
    flips = (
        max((each.explained + each.unexplained for each in margin_histogram.bins), default=0) or 1
    )
    return PageMargins(
        name=margin_histogram.path,
        bars=tuple(bar for each in margin_histogram.bins for bar in _bars(each, axis, most, flips)),
        bound=margin_histogram.bound,
        bound_at=round(axis.at(margin_histogram.bound), 2),
        ticks=axis.ticks(),
        tokens=sum(each.tokens for each in margin_histogram.bins),
        explained=sum(each.explained for each in margin_histogram.bins),
        unexplained=sum(each.unexplained for each in margin_histogram.bins),
    )


def _bars(margin_bin: MarginBin, axis: _Axis, most: int, flips: int) -> list[Bar]:
    x, width = (round(each, 2) for each in axis.span(margin_bin))
    where = f"margin {margin_bin.at_least:.2g} to {margin_bin.below:.2g}"
    tall = _height(margin_bin.tokens, most, _TOP)
    bars = [Bar("tokens", x, width, -tall, tall, f"{where}: {count(margin_bin.tokens, 'token')}")]
    depth = 0.0
    for kind, number in (
        ("explained", margin_bin.explained),
        ("unexplained", margin_bin.unexplained),
    ):
        if number:
            long = _height(number, flips, _DEPTH)
            words = f"{where}: {count(number, 'flip')} {kind}"
            bars.append(Bar(kind, x, width, depth, long, words))
            depth += long
    return bars


def _height(number: int, most: int, height: float) -> float:
    """Return px; what is there is seen."""
    return round(max(2.0, height * number / most), 1)


_WIDE_FROM = 25  # heads


@dataclass(frozen=True)
class Shade:
    """A share of tokens.

    Attributes:
        level: 0 for none, 1 to 10 for each tenth; None without tokens.
        text: In percent, without the sign.
    """

    level: int | None
    text: str


@dataclass(frozen=True)
class HeatCell:
    """One head of one row.

    Attributes:
        package: What ran.
        reference: What it is compared with; None where both are the same.
        words: Both counts, where they differ.
    """

    package: Shade
    reference: Shade | None = None
    words: str | None = None


@dataclass(frozen=True)
class HeatRow:
    """One layer or class.

    Attributes:
        name: It.
        note: What stands beside the name.
        cells: One a head.
    """

    name: str
    note: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True)
class HeatBlock:
    """Rows that follow each other and have the same heads.

    Attributes:
        shared: Numbers of the shared heads.
        routed: Numbers of the others.
        knows_shared: Whether it is known which heads are shared.
        rows: The rows.
    """

    shared: range
    routed: range
    knows_shared: bool
    rows: tuple[HeatRow, ...]


@dataclass(frozen=True)
class PageMap:
    """A heat map.

    Attributes:
        content: What it shows.
        blocks: Its rows.
    """

    content: HeatMap
    blocks: tuple[HeatBlock, ...]

    @property
    def is_wide(self) -> bool:
        """Whether its cells should be small."""
        return any(block.routed.stop >= _WIDE_FROM for block in self.blocks)


def page_map(content: HeatMap) -> PageMap:
    """Lay out a map: rows with other heads begin another block."""
    # Only neighbours share a block: layers stay in their order of execution.
    grouped = groupby(content.rows, lambda row: (len(row.got), row.shared))
    return PageMap(content, tuple(_block(*shape, list(rows)) for shape, rows in grouped))


def shade(share: float | None) -> Shade:
    """Return how a share is shown: 0 and 100 are exact, what is near them says so."""
    if share is None:
        return Shade(None, "–")
    level = 0 if share == 0 else 1 + min(9, int(share * 10))
    percent = 100 * share
    if 0 < percent < 1:
        return Shade(level, "<1")
    return Shade(level, ">99" if 99 < percent < 100 else f"{percent:.0f}")


def _block(heads: int, shared: int | None, rows: list[LoadRow]) -> HeatBlock:
    first = min(shared or 0, heads)
    shown = tuple(HeatRow(row.name, row.note, _cells(row)) for row in rows)
    return HeatBlock(range(first), range(first, heads), shared is not None, shown)


def _cells(row: LoadRow) -> tuple[HeatCell, ...]:
    pairs = zip(row.got, row.reference, strict=True)
    return tuple(_cell(got, reference, row.tokens) for got, reference in pairs)


def _cell(got: int, reference: int, tokens: int) -> HeatCell:
    if got == reference:
        return HeatCell(shade(got / tokens if tokens else None))
    words = f"on for {got} of {tokens} tokens in the package, for {reference} in the reference"
    return HeatCell(shade(got / tokens), shade(reference / tokens), words)

"""Charts of routing: loads of heads as coloured numbers, and how clear the choices are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from moh_deploy.report.document import HeatMap, LoadRow, MarginBin, MarginHistogram
from moh_deploy.report.html.scales import Scale, Tick, decades
from moh_deploy.report.numbers import count

_TOP, _DEPTH = 60.0, 24.0  # px that the most tokens rise and that the most flips hang
_LEFT, _RIGHT = 7.0, 9.0  # percent for exact ties, and for tokens without a margin
_GAP = 1.0
_WIDE_FROM = 25  # heads


@dataclass(frozen=True)
class Bar:
    """A bar of `tokens`, `explained` or `unexplained` flips, with its count in words.

    `x` and `width` are in percent of the chart, `y` and `height` in px from the axis.
    """

    kind: str
    x: float
    width: float
    y: float
    height: float
    words: str


@dataclass(frozen=True)
class PageMargins:
    """Tokens of one layer by margin, with its flips below the axis.

    Left of `bound_at`, in percent, rounding explains flips.
    """

    name: str
    words: str
    bars: tuple[Bar, ...]
    bound_at: float
    ticks: tuple[Tick, ...]
    tokens: int
    explained: int
    unexplained: int


def page_margins(layers: Sequence[MarginHistogram]) -> list[PageMargins]:
    """Return a chart of each layer, all on one axis."""
    every = [bin_ for layer in layers for bin_ in layer.bins]
    edges = [edge for bin_ in every for edge in (bin_.at_least, bin_.below)]
    axis = _Axis(
        decades([*edges, *(layer.bound / 10 for layer in layers)]),
        left=_LEFT if any(bin_.at_least == 0 for bin_ in every) else 0.0,
        right=_RIGHT if any(math.isinf(bin_.at_least) for bin_ in every) else 0.0,
    )
    return [_chart(layer, axis) for layer in layers]


@dataclass(frozen=True)
class _Axis:
    """The scale of margins, with room on its left and right for tokens that have none on it."""

    scale: Scale
    left: float
    right: float

    def at(self, value: float) -> float:
        width = 100 - self.left - self.right
        return self.left + self.scale.at(value) * width / 100

    def span(self, bin_: MarginBin) -> tuple[float, float]:
        """Return where a bar lies and how wide it is."""
        if bin_.at_least == 0:
            return 0.0, self.left - 2 * _GAP
        if math.isinf(bin_.at_least):
            return 100 - self.right + 2 * _GAP, self.right - 2 * _GAP
        start, end = self.at(bin_.at_least), self.at(min(bin_.below, self.scale.high))
        return start, max(0.5, end - start - _GAP / 4)

    def ticks(self) -> tuple[Tick, ...]:
        """Return those of the scale that stand free of the labels beside it."""
        free = []
        for tick in self.scale.ticks:
            ratio = self.scale.high / self.scale.low
            at = round(self.at(self.scale.low * math.pow(ratio, tick.at / 100)), 2)
            if 2 * self.left <= at <= 100 - 2 * self.right:
                free.append(replace(tick, at=at))
        first = [Tick(0.0, "tie")] if self.left else []
        last = [Tick(100.0, "none")] if self.right else []
        return (*first, *free, *last)


def _chart(layer: MarginHistogram, axis: _Axis) -> PageMargins:
    most = max((bin_.tokens for bin_ in layer.bins), default=1)
    flips = max((bin_.explained + bin_.unexplained for bin_ in layer.bins), default=0) or 1
    tokens = sum(bin_.tokens for bin_ in layer.bins)
    explained = sum(bin_.explained for bin_ in layer.bins)
    unexplained = sum(bin_.unexplained for bin_ in layer.bins)
    return PageMargins(
        layer.path,
        f"{count(tokens, 'token')}; flips: {explained} explained, {unexplained} unexplained; bound"
        f" {layer.bound:.3g}",
        tuple(bar for bin_ in layer.bins for bar in _bars(bin_, axis, most, flips)),
        round(axis.at(layer.bound), 2),
        axis.ticks(),
        tokens,
        explained,
        unexplained,
    )


def _bars(bin_: MarginBin, axis: _Axis, most: int, flips: int) -> list[Bar]:
    """Return a bar of tokens, and flips that hang below it one behind the other."""
    x, width = (round(place, 2) for place in axis.span(bin_))
    where = f"margin {bin_.at_least:.2g} to {bin_.below:.2g}"
    # At least 2 px: what is there is seen.
    tall = round(max(2.0, _TOP * bin_.tokens / most), 1)
    bars = [Bar("tokens", x, width, -tall, tall, f"{where}: {count(bin_.tokens, 'token')}")]
    depth = 0.0
    for kind, number in (("explained", bin_.explained), ("unexplained", bin_.unexplained)):
        if number:
            long = round(max(2.0, _DEPTH * number / flips), 1)
            bars.append(
                Bar(kind, x, width, depth, long, f"{where}: {count(number, 'flip')} {kind}")
            )
            depth += long
    return bars


@dataclass(frozen=True)
class Shade:
    """A share of tokens."""

    level: int | None  # 0 for none, 1 to 10 for each tenth; None without tokens
    text: str  # In percent, without the sign


@dataclass(frozen=True)
class HeatCell:
    """One head of one row; where the reference differs, its share, too, and both counts."""

    package: Shade
    reference: Shade | None = None
    words: str | None = None


@dataclass(frozen=True)
class HeatRow:
    """One layer or class, a cell for each head."""

    name: str
    note: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True)
class HeatBlock:
    """Rows that follow each other and have the same heads: numbers of shared and routed ones."""

    shared: range
    routed: range
    knows_shared: bool
    rows: tuple[HeatRow, ...]


@dataclass(frozen=True)
class PageMap:
    """A heat map."""

    content: HeatMap
    blocks: tuple[HeatBlock, ...]

    @property
    def is_wide(self) -> bool:
        """Whether its cells should be small."""
        return any(block.routed.stop >= _WIDE_FROM for block in self.blocks)


def page_map(content: HeatMap) -> PageMap:
    """Lay out a map: rows with other heads begin another block."""
    blocks = []
    # Only neighbours share a block: layers stay in their order of execution.
    for (heads, shared), rows in groupby(content.rows, lambda row: (len(row.got), row.shared)):
        first = min(shared or 0, heads)
        shown = tuple(HeatRow(row.name, row.note, _cells(row)) for row in rows)
        blocks.append(HeatBlock(range(first), range(first, heads), shared is not None, shown))
    return PageMap(content, tuple(blocks))


def shade(share: float | None) -> Shade:
    """Return how a share is shown: 0 and 100 are exact, what is near them says so."""
    if share is None:
        return Shade(None, "–")
    level = 0 if share == 0 else 1 + min(9, int(share * 10))
    percent = 100 * share
    if 0 < percent < 1:
        return Shade(level, "<1")
    return Shade(level, ">99" if 99 < percent < 100 else f"{percent:.0f}")


def _cells(row: LoadRow) -> tuple[HeatCell, ...]:
    tokens, cells = row.tokens, []
    for got, reference in zip(row.got, row.reference, strict=True):
        cell = HeatCell(shade(got / tokens if tokens else None))
        if got != reference:
            words = f"{got} of {tokens} tokens in the package, for {reference} in the reference"
            cell = HeatCell(cell.package, shade(reference / tokens), f"on for {words}")
        cells.append(cell)
    return tuple(cells)

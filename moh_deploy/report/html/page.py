"""Show a document as one page that any browser can read and that needs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from moh_deploy.report import document as doc
from moh_deploy.report.html import charts
from moh_deploy.report.html.charts import Scale, Tick, decades
from moh_deploy.report.report import count, number, share
from moh_deploy.system.replaceable import FileKind

if TYPE_CHECKING:
    from jinja2 import Environment


# Tables of a page: drawn cells become shapes on an axis that all rows share.

_SHARES = charts.Scale(
    0.0, 1.0, tuple(charts.Tick(at, f"{at:.0f} %") for at in (0.0, 50.0, 100.0)), is_log=False
)
_ROOM = 1.05  # that ratios have on both sides


@dataclass(frozen=True)
class Mark:
    """A shape on a track; places are in percent of its length."""

    # A bar, an interval, a dot for what was measured, or a line for a limit.
    kind: Literal["bar", "interval", "dot", "limit"]
    start: float
    end: float = 0.0  # Right end of a bar or interval
    is_bad: bool = False


@dataclass(frozen=True)
class Track:
    """A cell with a drawing."""

    label: str
    marks: tuple[Mark, ...]
    scale: charts.Scale


@dataclass(frozen=True)
class PageTable:
    """A table as a page shows it: numbers that can be compared are drawn on one axis."""

    caption: str
    id: str
    columns: Sequence[doc.Column]
    # Cells of letters, with a colour, or drawn; None is a dash.
    rows: Sequence[Sequence[str | doc.Status | Track | None]]
    scale: charts.Scale | None
    drawn: int | None  # Which column holds them


def page_table(table: doc.Table) -> PageTable:
    """Lay out a table."""
    columns, rows = table.part("page")
    cells = [cell for row in rows for cell in row if isinstance(cell, doc.Drawn)]
    scale = _scale(table, cells) if cells else None
    # Rows on a whole, such as a total, may have no drawn cell.
    places = (place for row in rows for place in enumerate(row))
    drawn = next((index for index, cell in places if isinstance(cell, doc.Drawn)), None)
    shown = [[_page_cell(cell, scale) for cell in row] for row in rows]
    return PageTable(table.caption, table.id, columns, shown, scale, drawn)


def _page_cell(cell: doc.Cell, scale: charts.Scale | None) -> str | doc.Status | Track | None:
    if isinstance(cell, doc.Drawn):
        assert scale is not None
        return Track(cell.words, tuple(_marks(cell, scale)), scale)
    if isinstance(cell, doc.Share):
        return share(cell.value)
    if cell is None or isinstance(cell, doc.Status):
        return cell
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return number(cell) if isinstance(cell, float) else str(cell)


def _scale(table: doc.Table, cells: Sequence[doc.Drawn]) -> charts.Scale:
    """Return an axis that has room for every number of the cells."""
    if table.axis == "shares":
        return _SHARES
    limits = [cell.limit for cell in cells if cell.limit is not None]
    numbers = [*(cell.value for cell in cells), *limits, *table.axis_holds]
    numbers += [end for cell in cells for end in cell.interval or ()]
    if table.axis == "decades":
        # Infinity is drawn at the right end: beyond all limits.
        beyond = [10 * limit for limit in limits] if math.inf in numbers else []
        return charts.decades([*numbers, *beyond])
    # A round axis cannot hold infinity; what has it is drawn at the nearer end.
    finite = [value for value in numbers if math.isfinite(value)]
    if table.axis == "ratios":
        return charts.round_numbers(min(finite) / _ROOM, max(finite) * _ROOM, is_log=True)
    return charts.round_numbers(min(finite), max(finite), is_log=False)


def _marks(cell: doc.Drawn, scale: charts.Scale) -> Iterator[Mark]:
    """Yield the shapes of a cell, the later above the earlier."""
    at = scale.at
    # NaN is not drawn as 0: the row has its limit, and the number in words.
    if not math.isnan(cell.value):
        if cell.bar_from is not None:
            start, end = sorted((at(cell.bar_from), at(cell.value)))
            yield Mark("bar", start, end, cell.is_bad)
        if cell.interval is not None:
            low, high = cell.interval
            yield Mark("interval", at(low), at(high))
        if cell.has_dot:
            yield Mark("dot", at(cell.value), is_bad=cell.is_bad)
    if cell.limit is not None:
        yield Mark("limit", at(cell.limit))


# HTML has no form for control characters, UTF-8 none for halves of surrogate pairs.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


HTML_FILE = FileKind.beginning_with(
    "page of moh-deploy", rb"\s*<!DOCTYPE html>.*\(moh-deploy \w+\)</title>"
)


def page(document: doc.Document, about: doc.About) -> str:
    """Return the text of a file."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    template = _environment().get_template("page.html")
    # Jinja leaves an empty line for each of its own.
    text = template.render(document=document, about=about, made=made)
    return _NOT_TEXT.sub("?", re.sub(r"\n\s*\n+", "\n", text))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("moh_deploy.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Templates lay out what they show by these filters, and know the types of blocks only.
    # `block|kind` names the macro of blocks.html that shows a block.
    environment.filters["kind"] = lambda block: type(block).__name__
    drawn = charts.page_chart, charts.page_trade_off, charts.page_speed
    for layout in (page_table, page_map, page_margins, *drawn):
        environment.filters[layout.__name__] = layout
    return environment


# Charts of routing: loads of heads as coloured numbers, and how clear the choices are.

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


def page_margins(layers: Sequence[doc.MarginHistogram]) -> list[PageMargins]:
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
    """The scale of margins, with room on both sides for tokens beyond it."""

    scale: Scale
    left: float
    right: float

    def at(self, value: float) -> float:
        width = 100 - self.left - self.right
        return self.left + self.scale.at(value) * width / 100

    def span(self, bin_: doc.MarginBin) -> tuple[float, float]:
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


def _chart(layer: doc.MarginHistogram, axis: _Axis) -> PageMargins:
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


def _bars(bin_: doc.MarginBin, axis: _Axis, most: int, flips: int) -> list[Bar]:
    """Return a bar of tokens, and flips that hang below it one behind the other."""
    x, width = (round(place, 2) for place in axis.span(bin_))
    where = f"margin {bin_.at_least:.2g} to {bin_.below:.2g}"
    # At least 2 px: what is there is seen.
    tall = round(max(2.0, _TOP * bin_.tokens / most), 1)
    bars = [Bar("tokens", x, width, -tall, tall, f"{where}: {count(bin_.tokens, 'token')}")]
    depth = 0.0
    for kind, flipped in (("explained", bin_.explained), ("unexplained", bin_.unexplained)):
        if flipped:
            long = round(max(2.0, _DEPTH * flipped / flips), 1)
            bars.append(
                Bar(kind, x, width, depth, long, f"{where}: {count(flipped, 'flip')} {kind}")
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
    """A heat map on a page."""

    content: doc.HeatMap
    blocks: tuple[HeatBlock, ...]

    @property
    def is_wide(self) -> bool:
        """Tell whether its cells should be small."""
        return any(block.routed.stop >= _WIDE_FROM for block in self.blocks)


def page_map(content: doc.HeatMap) -> PageMap:
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


def _cells(row: doc.LoadRow) -> tuple[HeatCell, ...]:
    tokens, cells = row.tokens, []
    for got, reference in zip(row.got, row.reference, strict=True):
        cell = HeatCell(shade(got / tokens if tokens else None))
        if got != reference:
            words = f"{got} of {tokens} tokens in the package, for {reference} in the reference"
            cell = HeatCell(cell.package, shade(reference / tokens), f"on for {words}")
        cells.append(cell)
    return tuple(cells)

"""Show a document as one page that any browser can read and that needs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Literal

from moh_deploy.report.document import About, Cell, Column, Document, Drawn, Share, Status, Table
from moh_deploy.report.html.routing_charts import page_map, page_margins
from moh_deploy.report.html.scales import Scale, Tick, decades, round_numbers
from moh_deploy.report.html.time_charts import page_chart, page_trade_off
from moh_deploy.report.numbers import number, share
from moh_deploy.system.replaceable import FileKind

if TYPE_CHECKING:
    from jinja2 import Environment


# Tables of a page: drawn cells become shapes on an axis that all rows share.

_SHARES = Scale(0.0, 1.0, tuple(Tick(at, f"{at:.0f} %") for at in (0.0, 50.0, 100.0)), is_log=False)
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
    """A drawn cell."""

    label: str
    marks: tuple[Mark, ...]
    scale: Scale


@dataclass(frozen=True)
class PageTable:
    """A table as a page shows it: numbers that can be compared are drawn on one axis."""

    caption: str
    id: str
    columns: Sequence[Column]
    # Cells of letters, with a colour, or drawn; None is a dash.
    rows: Sequence[Sequence[str | Status | Track | None]]
    scale: Scale | None
    drawn: int | None  # Which column holds them


def page_table(table: Table) -> PageTable:
    """Lay out a table."""
    columns, rows = table.part("page")
    cells = [cell for row in rows for cell in row if isinstance(cell, Drawn)]
    scale = _scale(table, cells) if cells else None
    # Rows on a whole, such as a total, may have no drawn cell.
    places = (place for row in rows for place in enumerate(row))
    drawn = next((index for index, cell in places if isinstance(cell, Drawn)), None)
    shown = [[_shown(cell, scale) for cell in row] for row in rows]
    return PageTable(table.caption, table.id, columns, shown, scale, drawn)


def _shown(cell: Cell, scale: Scale | None) -> str | Status | Track | None:
    if isinstance(cell, Drawn):
        assert scale is not None
        return Track(cell.words, tuple(_marks(cell, scale)), scale)
    if isinstance(cell, Share):
        return share(cell.value)
    if cell is None or isinstance(cell, Status):
        return cell
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return number(cell) if isinstance(cell, float) else str(cell)


def _scale(table: Table, cells: Sequence[Drawn]) -> Scale:
    """Return an axis that has room for every number of the cells."""
    if table.axis == "shares":
        return _SHARES
    limits = [cell.limit for cell in cells if cell.limit is not None]
    numbers = [*(cell.value for cell in cells), *limits, *table.axis_holds]
    numbers += [end for cell in cells for end in cell.interval or ()]
    if table.axis == "decades":
        # Infinity is drawn at the right end: beyond all limits.
        beyond = [10 * limit for limit in limits] if math.inf in numbers else []
        return decades([*numbers, *beyond])
    # A round axis cannot hold infinity; what has it is drawn at the nearer end.
    finite = [value for value in numbers if math.isfinite(value)]
    if table.axis == "ratios":
        return round_numbers(min(finite) / _ROOM, max(finite) * _ROOM, is_log=True)
    return round_numbers(min(finite), max(finite), is_log=False)


def _marks(cell: Drawn, scale: Scale) -> Iterator[Mark]:
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


def page(document: Document, about: About) -> str:
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
    for layout in (page_table, page_map, page_chart, page_margins, page_trade_off):
        environment.filters[layout.__name__] = layout
    return environment

"""Loads of heads as a table of coloured numbers: layers, or classes of samples, by heads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from moh_deploy.report.charts import HeatMap, LoadRow

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

"""Loads of heads as a table of coloured numbers: layers, or classes of samples, by heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from moh_deploy.validate.routing_statistics import ClassLoad, HeadLoad

MOST_CLASSES = 40
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
class HeatMap:
    """A heat map.

    Attributes:
        caption: What it shows.
        row_kind: What a row is.
        blocks: Its rows.
        left_out: How many rows there are that it does not show.
    """

    caption: str
    row_kind: str
    blocks: tuple[HeatBlock, ...]
    left_out: int = 0

    @property
    def is_wide(self) -> bool:
        """Whether its cells should be small."""
        return any(block.routed.stop >= _WIDE_FROM for block in self.blocks)

    @property
    def differs(self) -> int:
        """How many cells differ from the reference."""
        rows = (row for block in self.blocks for row in block.rows)
        return sum(cell.reference is not None for row in rows for cell in row.cells)


def load_map(loads: Sequence[HeadLoad]) -> HeatMap:
    """Return layers by heads, the package beside the reference."""

    def block(shape: tuple[int, int | None], group: Iterable[HeadLoad]) -> HeatBlock:
        return _block(*shape, tuple(map(_layer_row, group)))

    grouped = groupby(loads, lambda one: (len(one.got), one.num_shared_heads))
    blocks = tuple(block(shape, group) for shape, group in grouped)
    return HeatMap("share of tokens, in percent", "layer", blocks)


def class_map(load: ClassLoad) -> HeatMap:
    """Return classes by heads of one layer; of many classes, those with the most samples."""
    most = sorted(range(len(load.classes)), key=lambda one: -load.samples[one])[:MOST_CLASSES]
    shown = sorted(most, key=lambda one: _in_order(load.classes[one]))
    rows = tuple(
        HeatRow(
            load.classes[index],
            f"{load.samples[index]}",
            tuple(_cell(on, on, load.tokens[index]) for on in load.on[index]),
        )
        for index in shown
    )
    heads = len(load.on[0]) if load.on else 0
    blocks = (_block(heads, load.num_shared_heads, rows),)
    return HeatMap(load.path, "class", blocks, len(load.classes) - len(rows))


def _in_order(name: str) -> tuple[int, str]:
    """Return the key by which 2 comes before 10."""
    return (int(name), "") if name.isdecimal() else (-1, name)


def shade(share: float | None) -> Shade:
    """Return how a share is shown: 0 and 100 are exact, what is near them says so."""
    if share is None:
        return Shade(None, "–")
    level = 0 if share == 0 else 1 + min(9, int(share * 10))
    percent = 100 * share
    if 0 < percent < 1:
        return Shade(level, "<1")
    return Shade(level, ">99" if 99 < percent < 100 else f"{percent:.0f}")


def _block(heads: int, shared: int | None, rows: tuple[HeatRow, ...]) -> HeatBlock:
    first = min(shared or 0, heads)
    return HeatBlock(range(first), range(first, heads), shared is not None, rows)


def _layer_row(load: HeadLoad) -> HeatRow:
    pairs = zip(load.got, load.reference, strict=True)
    cells = tuple(_cell(got, reference, load.tokens) for got, reference in pairs)
    return HeatRow(load.path, "", cells)


def _cell(got: int, reference: int, tokens: int) -> HeatCell:
    if got == reference:
        return HeatCell(shade(got / tokens if tokens else None))
    words = f"on for {got} of {tokens} tokens in the package, for {reference} in the reference"
    return HeatCell(shade(got / tokens), shade(reference / tokens), words)

"""Tables of a page, and what their cells show beside text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.report.html.scales import Scale


@dataclass(frozen=True)
class Status:
    """A cell that says whether something is as it should be.

    Attributes:
        text: The word.
        is_good: None where there is nothing to judge.
    """

    text: str
    is_good: bool | None


@dataclass(frozen=True)
class Mark:
    """A shape on a track; places are in percent of its length.

    Attributes:
        kind: A bar, an interval, a dot for what was measured, or a line for a limit.
        start: Left end of a bar or interval; where the others are.
        end: Right end of a bar or interval.
        is_bad: What was measured is not as it should be.
    """

    kind: Literal["bar", "interval", "dot", "limit"]
    start: float
    end: float = 0.0
    is_bad: bool = False


@dataclass(frozen=True)
class Track:
    """A cell that draws numbers of its row on an axis that all rows share.

    Attributes:
        label: The numbers in words.
        marks: In the order in which they are drawn.
        scale: The axis.
    """

    label: str
    marks: tuple[Mark, ...]
    scale: Scale


Cell = object
"""A status, a track, a dash for None, or text."""


# Columns of sentences, and how much room they keep where the page is narrow.
_WORDY = {
    "reason": "long",
    "what was measured": "long",
    "predicted to pay up to (open gates)": "words",
    "worst vectors": "words",
}


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: What stands above it.
        columns: Their names; those that align right begin with `#`.
        rows: Their cells; None is a dash.
        axis: Of the tracks, if there are any.
        wordy: Names of columns that hold sentences to the class of their cells.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    axis: Scale | None = None

    wordy: Mapping[str, str] = field(default_factory=lambda: _WORDY)

    @property
    def drawn(self) -> int | None:
        """Which column holds tracks."""
        cells = enumerate(self.rows[0] if self.rows else ())
        return next((index for index, cell in cells if isinstance(cell, Track)), None)


def number(value: float | None) -> str | None:
    """Return a measured number to three digits; what is none is called so."""
    if value is None:
        return None
    if math.isnan(value):
        return "NaN"
    return f"{value:.3g}" if math.isfinite(value) else ("∞" if value > 0 else "-∞")

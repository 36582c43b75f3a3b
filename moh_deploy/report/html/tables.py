"""Tables of a page, and what their cells show beside text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    axis: Scale | None = None

    @property
    def wordy(self) -> Mapping[str, str]:
        """Names of columns that hold sentences to the class of their cells."""
        return _WORDY

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


def share(value: float | None, *, digits: int = 1) -> str | None:
    """Return `62.5 %`; all and none are said of all and none only."""
    if value is None or not 0 <= value <= 1:
        return number(value)
    if value in (0, 1):
        return f"{100 * value:.0f} %"
    step = 10.0**-digits
    percent = round(100 * value, digits)
    if percent == 100:
        return f">{100 - step:.{digits}f} %"
    if percent == 0:
        return f"<{step:.{digits}f} %"
    return f"{percent:.{digits}f} %"

"""Charts of a report: the numbers to draw, and not how. Only a page draws them."""

from __future__ import annotations

from dataclasses import dataclass

from moh_deploy.report.formats import PAGE, Format


@dataclass(frozen=True)
class LoadRow:
    """For how many tokens each head of a layer, or of the samples of a class, is on.

    Attributes:
        name: The layer or class.
        tokens: How many there are.
        got: For how many of them each head is on.
        reference: The same of what that is compared with.
        shared: The first so many heads are meant to be on for all; None if that is not known.
        note: What stands beside the name.
    """

    name: str
    tokens: int
    got: tuple[int, ...]
    reference: tuple[int, ...]
    shared: int | None
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Heads by layers or classes, as coloured numbers.

    Attributes:
        caption: What it shows.
        row_kind: What a row is.
        rows: The rows.
        id: What a page calls it.
        left_out: How many rows there are that it does not show.
    """

    caption: str
    row_kind: str
    rows: tuple[LoadRow, ...]
    id: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class HeatMaps:
    """Maps of one kind, at least one; a page folds all but the last."""

    maps: tuple[HeatMap, ...]
    shown: frozenset[Format] = PAGE


@dataclass(frozen=True)
class MarginBin:
    """Tokens whose margins are alike.

    Attributes:
        at_least: Of the margins; infinity where a token has none: there is nothing to choose, or
            the scores behind the choice are not known.
        below: Upper edge.
        tokens: How many there are.
        explained: Those of them that chose other heads, and whose margin excuses it.
        unexplained: Those that chose other heads, and whose margin does not.
    """

    at_least: float
    below: float
    tokens: int
    explained: int
    unexplained: int


@dataclass(frozen=True)
class MarginHistogram:
    """A histogram of how clear the choices of a layer are.

    Attributes:
        path: The layer.
        bound: Rounding explains other choices of tokens with a smaller margin.
        bins: Those that hold a token, ascending.
    """

    path: str
    bound: float
    bins: tuple[MarginBin, ...]


@dataclass(frozen=True)
class MarginCharts:
    """A chart for each layer, all on one axis."""

    layers: tuple[MarginHistogram, ...]
    shown: frozenset[Format] = PAGE


@dataclass(frozen=True)
class Line:
    """The distribution of the times of one candidate, to be drawn.

    Attributes:
        name: The contestant.
        summary: What stands beside the name.
        sorted_ms: Times of single runs, the fastest first.
    """

    name: str
    summary: str
    sorted_ms: tuple[float, ...]


@dataclass(frozen=True)
class LatencyChart:
    """The share of runs that took no longer, at least one line."""

    title: str
    lines: tuple[Line, ...]
    shown: frozenset[Format] = PAGE


@dataclass(frozen=True)
class TradeOffPoint:
    """A contestant by its time and its quality, both finite.

    Attributes:
        name: The contestant.
        summary: What stands beside the name.
        x: Its time.
        y: Its quality.
        x_interval: Where the true time is; None if that is not known.
        y_interval: Where the true quality is.
    """

    name: str
    summary: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class TradeOffChart:
    """Quality against time, at least one point.

    Attributes:
        title: What it shows.
        x_name: The time, with its unit.
        y_name: The quality.
        points: The contestants.
        x_limit: The longest time that was promised; None for no promise.
        y_limit: The worst quality that was promised.
        y_is_share: Quality is shown in percent.
        lower_is_better: Of quality.
    """

    title: str
    x_name: str
    y_name: str
    points: tuple[TradeOffPoint, ...]
    x_limit: float | None = None
    y_limit: float | None = None
    y_is_share: bool = False
    lower_is_better: bool = False
    shown: frozenset[Format] = PAGE

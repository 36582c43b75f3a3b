"""The content of a report, apart from its looks.

A terminal, Markdown, JUnit XML and a page (`terminal.py`, `markdown.py`, `junit.py`, `html/`) each
show any document, and know nothing of what it is a report on. The dataclass of a report stands
beside the work that it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# A terminal shows an answer on one screen, `--verbose` all that text can say in as many columns as
# it takes. A comment on a pull request is read in a narrow column, and draws nothing either; a page
# draws, and folds what few will read.
Format = Literal["terminal", "verbose", "markdown", "page"]
EVERYWHERE = frozenset[Format](("terminal", "verbose", "markdown", "page"))
TEXT = frozenset[Format](("terminal", "verbose", "markdown"))
DETAILED = frozenset[Format](("verbose", "markdown", "page"))
DETAILED_TEXT = frozenset[Format](("verbose", "markdown"))
ROOMY = frozenset[Format](("verbose", "page"))
IN_TERMINAL = frozenset[Format](("terminal", "verbose"))
NOT_TERMINAL = frozenset[Format](("markdown", "page"))
PAGE = frozenset[Format](("page",))

# Charts: the numbers to draw, and not how. Only a page draws them.


@dataclass(frozen=True)
class LoadRow:
    """For how many tokens each head of a layer, or of the samples of a class, is on."""

    name: str  # The layer or class
    tokens: int
    got: tuple[int, ...]  # For how many of its tokens each head is on
    reference: tuple[int, ...]  # The same of what that is compared with
    # The first so many heads are meant to be on for all; None if that is not known.
    shared: int | None
    note: str = ""  # What stands beside the name


@dataclass(frozen=True)
class HeatMap:
    """Heads by layers or classes (`row_kind`), as coloured numbers; some rows may be left out."""

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
    """Tokens whose margins are alike."""

    # Of the margins; infinity for a token without one: there is nothing to choose, or the scores
    # behind the choice are not known.
    at_least: float
    below: float  # Upper edge
    tokens: int
    explained: int  # Tokens that chose other heads, and whose margin excuses it
    unexplained: int  # Tokens that chose other heads, and whose margin does not


@dataclass(frozen=True)
class MarginHistogram:
    """A histogram of the routing margins of a layer: bins that hold a token, ascending.

    Below `bound`, rounding explains other choices.
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
    """The distribution of the times of one candidate: single runs, the fastest first."""

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
    """A candidate by its time `x` and its quality `y`, both finite.

    Intervals say where the true values are; None if that is not known.
    """

    name: str
    summary: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class TradeOffChart:
    """Quality against time, at least one point."""

    title: str
    x_name: str  # The time, with its unit
    y_name: str  # The quality
    points: tuple[TradeOffPoint, ...]
    x_limit: float | None = None  # The longest time that was promised; None for no promise
    y_limit: float | None = None  # The worst quality that was promised
    x_unit: str = ""  # What stands behind the numbers of the time's axis
    y_is_share: bool = False  # Quality is shown in percent
    lower_is_better: bool = False  # Of quality
    shown: frozenset[Format] = PAGE


@dataclass(frozen=True)
class SpeedChart:
    """Speed against the share of open heads: at least two points, the smallest share first."""

    title: str
    source: str  # Where the curve is from: a prediction, or what was measured
    points: tuple[tuple[float, float], ...]  # Share of open heads, times as fast as dense
    own: tuple[float, float]  # The same of the package as it is
    # Up to which share it is faster than dense: 1 where it always is, None where it never is.
    break_even: float | None
    shown: frozenset[Format] = PAGE


# Cells and tables.


@dataclass(frozen=True)
class Share:
    """A cell that holds a part of a whole: 0.625 is shown as `62.5 %`, None as a dash."""

    value: float | None


@dataclass(frozen=True)
class Status:
    """A cell that says whether something is as it should be; None: there is nothing to judge."""

    text: str
    is_good: bool | None


@dataclass(frozen=True)
class Drawn:
    """A cell that draws the numbers of its row on an axis that all rows share."""

    words: str  # The numbers in words, for readers who cannot see them
    value: float  # What was measured; NaN has no place and is not drawn
    limit: float | None = None  # Where a line stands that the value is compared with
    # Where the true value is, with 95 % certainty; None if it is no sample.
    interval: tuple[float, float] | None = None
    bar_from: float | None = None  # Where a bar up to the value begins; None for no bar
    has_dot: bool = True
    is_bad: bool = False


# Numbers stay numbers until a format shows them: a page calls NaN so, and a drawing needs them.
Cell = str | int | float | bool | Share | Status | Drawn | None
"""A float is shown to three digits, a bool as yes or no, None as a dash."""

AxisKind = Literal["decades", "ratios", "numbers", "shares"]
"""How drawn cells are laid out: by powers of ten, by ratios, by differences, or from 0 to 100 %."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str  # What stands above it; begins with `#` if its cells are numbers, which align right
    shown: frozenset[Format] = EVERYWHERE
    # How much room its sentences keep where a page is narrow.
    width: Literal["", "words", "long"] = ""

    @property
    def is_number(self) -> bool:
        return self.name.startswith("#")

    @property
    def title(self) -> str:
        return self.name.removeprefix("#")


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    caption: str
    # One for each cell of a row; a string is the name of a column shown everywhere.
    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Cell]]
    id: str = ""  # What a page calls it
    shown: frozenset[Format] = EVERYWHERE
    axis: AxisKind | None = None  # Of the column of drawn cells, if there is one
    axis_holds: tuple[float, ...] = ()  # Numbers that the axis has room for, whatever the cells are
    # How many rows a terminal shows, where `--verbose` shows the others, too.
    most_rows: int | None = None

    def part(self, where: Format) -> tuple[list[Column], list[list[Cell]]]:
        """Return the columns that a format shows, and the cells of each row that are in them."""
        # Cells go with their columns, so a row is written once for all formats.
        every = [Column(column) if isinstance(column, str) else column for column in self.columns]
        kept = [index for index, column in enumerate(every) if where in column.shown]
        rows = [[row[index] for index in kept] for row in self.rows]
        return [every[index] for index in kept], rows


# Some of what is said needs more room than a comment on a pull request has: `shown` says where it
# stands, by default everywhere.


@dataclass(frozen=True)
class Text:
    """A sentence or several, coloured by `is_good`."""

    text: str
    is_good: bool | None = None
    shown: frozenset[Format] = EVERYWHERE
    is_whole: bool = False  # It holds a command to copy: a terminal breaks no line


@dataclass(frozen=True)
class Folded:
    """Blocks that a page folds away behind a summary until a reader opens them."""

    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Verdict:
    """An answer, and what it rests on."""

    word: str  # In capitals
    is_good: bool | None  # None where nothing is judged
    sentence: str = ""  # What a page says beside the word
    # What text says behind the word, where a page has facts; nothing: text has no verdict.
    lines: tuple[str, ...] = ()
    held: tuple[str, ...] = ()  # What was judged and is good
    reasons: tuple[str, ...] = ()  # Why the answer is not good
    notes: tuple[str, ...] = ()  # What else was found out
    # How many reasons text gives, where there may be one for each of many outputs and layers; a
    # page and JSON have all.
    most_reasons: int | None = None

    @property
    def first_reasons(self) -> tuple[str, ...]:
        """The reasons that text gives."""
        return self.reasons[: self.most_reasons]


@dataclass(frozen=True)
class Section:
    """A part of a document; sections in it are one level below.

    Without a verdict of its own, text has no use for the title.
    """

    title: str
    blocks: tuple[Block, ...]
    verdict: Verdict | None = None
    shown: frozenset[Format] = EVERYWHERE


Chart = HeatMaps | MarginCharts | LatencyChart | TradeOffChart | SpeedChart
Block = Section | Table | Text | Folded | Chart


@dataclass(frozen=True)
class Fact:
    """A number with its unit that is worth a tile, and a note on what it is beside."""

    name: str
    value: str
    note: str = ""


CiOutcome = Literal["passed", "failure", "skipped", "error"]


@dataclass(frozen=True)
class CiCase:
    """One test case, as a CI counts them: no two of a suite have the same name.

    The message says why it did not pass, or what was measured.
    """

    group: str
    name: str
    outcome: CiOutcome
    message: str


@dataclass(frozen=True)
class CiSuite:
    """The cases of one comparison."""

    cases: tuple[CiCase, ...]  # The first is its verdict
    name: str = ""  # Empty for the name of what the document is about
    against: str = ""  # What that is compared with, where there are several
    facts: tuple[tuple[str, str], ...] = ()  # Name to value, of what all its cases have in common
    notes: tuple[str, ...] = ()  # What was found out


@dataclass(frozen=True)
class Document:
    """All that a report says."""

    kind: str  # The command that it is of
    blocks: tuple[Block, ...]  # What was measured, in the order in which it is read
    verdict: Verdict | None = None  # The answer, which every format shows first
    facts: tuple[Fact, ...] = ()  # Numbers that a page shows in large
    findings: tuple[str, ...] = ()  # Sentences on what it shows
    remarks: tuple[str, ...] = ()  # Sentences on how it came about
    baseline: Section | None = None  # The comparison with a baseline file
    warning: str = ""  # Stands before all but the answer
    suites: tuple[CiSuite, ...] = ()  # The same as test cases, for a CI
    title: str = ""  # Heads a page; empty for the name of what the document is about

    @property
    def parts(self) -> tuple[Section, ...]:
        """Sections that have an answer of their own."""
        sections = (block for block in self.blocks if isinstance(block, Section))
        return tuple(section for section in sections if section.verdict is not None)


def no_answer(kind: str, message: str) -> Document:
    """Return the document of a run that ended, or has so far come, without an answer."""
    verdict = Verdict("NO ANSWER", False, message, (message,))
    return Document(kind, (), verdict, suites=(CiSuite((CiCase(kind, "run", "error", message),)),))


@dataclass(frozen=True)
class About:
    """The run of a document: the command and the package."""

    subject: str  # Packages or engine, as the user named them
    command: str = ""  # The command line that makes the file again; empty if Python called
    environment: tuple[tuple[str, str], ...] = ()  # Names and values: versions, machine, kernels


def percent(share: float | None) -> str | None:
    """Return a share as text: `62.5 %`."""
    return None if share is None else f"{100 * share:.1f} %"


def plain(cell: Cell) -> str:
    """Return the text of a table's cell where there are letters only; None becomes a dash."""
    if isinstance(cell, Share):
        cell = percent(cell.value)
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return cell.text if isinstance(cell, Status) else str(cell)

"""What a report says, and not how it looks.

The dataclass of a report and the function that makes its document stand together, beside the work
that they are about. A terminal, Markdown, JUnit XML and a page (`terminal.py`, `markdown.py`,
`junit.py`, `html/`) each show any document, and know nothing of what it is a report on.

Some of what is said needs a drawing, or more room than a comment on a pull request has. That is
what `shown` is for; whatever does not say otherwise is shown everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# Where a part of a report is shown.

# A comment on a pull request is read in a narrow column and draws nothing; a terminal has room for
# more columns, and draws nothing either; a page has both, and folds what few will read.
Format = Literal["terminal", "markdown", "page"]
EVERYWHERE = frozenset[Format](("terminal", "markdown", "page"))
TEXT = frozenset[Format](("terminal", "markdown"))
ROOMY = frozenset[Format](("terminal", "page"))
NOT_TERMINAL = frozenset[Format](("markdown", "page"))
PAGE = frozenset[Format](("page",))


# Charts of a report: the numbers to draw, and not how. Only a page draws them.


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


@dataclass(frozen=True)
class Share:
    """A cell that holds a part of a whole: 0.625 is shown as `62.5 %`, None as a dash."""

    value: float | None


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
class Drawn:
    """A cell that draws the numbers of its row on an axis that all rows share.

    Attributes:
        words: The numbers in words, for who cannot see them.
        value: What was measured; NaN has no place and is not drawn.
        limit: Where a line stands that the value is compared with; None for none.
        interval: Where the true value is, with 95 % certainty; None if it is no sample.
        bar_from: Where a bar up to the value begins; None for no bar.
        has_dot: The value itself is marked.
        is_bad: It is not as it should be.
    """

    words: str
    value: float
    limit: float | None = None
    interval: tuple[float, float] | None = None
    bar_from: float | None = None
    has_dot: bool = True
    is_bad: bool = False


# Numbers stay numbers until a format shows them: a page calls NaN so, and a drawing needs them.
Cell = str | int | float | bool | Share | Status | Drawn | None
"""A float is shown to three digits, a bool as yes or no, None as a dash."""

AxisKind = Literal["decades", "ratios", "numbers", "shares"]
"""How drawn cells are laid out: by powers of ten, by ratios, by differences, or from 0 to 100 %."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: What stands above it; begins with `#` if its cells are numbers, which align right.
        shown: In which formats.
        width: How much room its sentences keep where a page is narrow.
    """

    name: str
    shown: frozenset[Format] = EVERYWHERE
    width: Literal["", "words", "long"] = ""

    @property
    def is_number(self) -> bool:
        return self.name.startswith("#")

    @property
    def title(self) -> str:
        return self.name.removeprefix("#")


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: What stands above it.
        columns: One for each cell of a row; a string is the name of a column shown everywhere.
        rows: The cells.
        id: What a page calls it.
        shown: In which formats.
        axis: Of the column of drawn cells, if there is one.
        axis_holds: Numbers that the axis has room for, whatever the cells are.
    """

    caption: str
    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Cell]]
    id: str = ""
    shown: frozenset[Format] = EVERYWHERE
    axis: AxisKind | None = None
    axis_holds: tuple[float, ...] = ()

    def part(self, where: Format) -> tuple[list[Column], list[list[Cell]]]:
        """Return the columns that a format shows, and the cells of each row that are in them."""
        # Cells go with their columns, so a row is written once for all formats.
        every = [Column(column) if isinstance(column, str) else column for column in self.columns]
        kept = [index for index, column in enumerate(every) if where in column.shown]
        rows = [[row[index] for index in kept] for row in self.rows]
        return [every[index] for index in kept], rows


@dataclass(frozen=True)
class Text:
    """A sentence or several.

    Attributes:
        text: The words.
        is_good: Gives it a colour.
        shown: In which formats.
        is_whole: It holds a command to copy: a terminal breaks no line.
    """

    text: str
    is_good: bool | None = None
    shown: frozenset[Format] = EVERYWHERE
    is_whole: bool = False


@dataclass(frozen=True)
class Folded:
    """Blocks that a page folds away until a reader opens them.

    Attributes:
        summary: What stands in its place.
        blocks: What it is.
    """

    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Verdict:
    """An answer, and what it rests on.

    Attributes:
        word: In capitals.
        is_good: None where nothing is judged.
        sentence: What a page says beside the word.
        lines: What text says behind the word, where a page has facts; nothing: text has no verdict.
        held: What was judged and is good.
        reasons: Why the answer is not good.
        notes: What else was found out.
        most_reasons: How many reasons text gives, where there may be one for each of many outputs
            and layers; a page and JSON have all.
    """

    word: str
    is_good: bool | None
    sentence: str = ""
    lines: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    most_reasons: int | None = None

    @property
    def first_reasons(self) -> tuple[str, ...]:
        """The reasons that text gives."""
        return self.reasons[: self.most_reasons]


@dataclass(frozen=True)
class Section:
    """A part of a document.

    Attributes:
        title: What it is about.
        blocks: What it says; sections are one level below this one.
        verdict: Its own, if it has one; without, text has no use for the title.
        shown: In which formats.
    """

    title: str
    blocks: tuple[Block, ...]
    verdict: Verdict | None = None
    shown: frozenset[Format] = EVERYWHERE


Chart = HeatMaps | MarginCharts | LatencyChart | TradeOffChart
Block = Section | Table | Text | Folded | Chart


@dataclass(frozen=True)
class Fact:
    """A number that is worth a tile.

    Attributes:
        name: What it is.
        value: The number, with its unit.
        note: What it is beside.
    """

    name: str
    value: str
    note: str = ""


CiOutcome = Literal["passed", "failure", "skipped", "error"]


@dataclass(frozen=True)
class CiCase:
    """One test case, as a CI counts them.

    Attributes:
        group: What kind of test.
        name: Of all cases of a suite, no two have the same.
        outcome: How it ended.
        message: Why it did not pass; what was measured if it did.
    """

    group: str
    name: str
    outcome: CiOutcome
    message: str


@dataclass(frozen=True)
class CiSuite:
    """The cases of one comparison.

    Attributes:
        cases: The first is its verdict.
        name: What it is called; empty for the name of what the document is about.
        against: What that is compared with, where there are several.
        facts: Name to value, of what all its cases have in common.
        notes: What was found out.
    """

    cases: tuple[CiCase, ...]
    name: str = ""
    against: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """All that a report says.

    Attributes:
        kind: The command that it is of.
        blocks: What was measured, in the order in which it is read.
        verdict: The answer, which a page shows first and a terminal last.
        facts: Numbers that a page shows in large.
        findings: Sentences on what it shows.
        remarks: Sentences on how it came about.
        baseline: The comparison with a baseline file.
        suites: The same as test cases, for a CI.
    """

    kind: str
    blocks: tuple[Block, ...]
    verdict: Verdict | None = None
    facts: tuple[Fact, ...] = ()
    findings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    baseline: Section | None = None
    suites: tuple[CiSuite, ...] = ()

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
    """The run that a document is of: what was asked, and of which package.

    Attributes:
        subject: Packages or engine, as the user named them.
        command: The command line that makes the file again; empty if Python called.
        environment: Names and values: versions, machine, kernels.
    """

    subject: str
    command: str = ""
    environment: tuple[tuple[str, str], ...] = ()

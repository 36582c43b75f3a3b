"""Show a document in a terminal: the answer in one line, then what it rests on."""

from collections.abc import Iterator, Sequence

from rich import table as rich
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.markup import escape
from rich.text import Text as Words

from moh_deploy.report import document as doc

# Columns share the room that there is; what is long and no word, such as a path, is folded. Where
# words do not fit beside each other, as in a terminal of 80 columns, each row is shown by itself, a
# line for each of its cells.

# A table is not given up for long words, such as paths: they are folded, at this width or less.
_FOLDED_AT = range(32, 11, -1)
_BORDER = 3  # columns of the terminal that a column takes besides what it holds


class TerminalTable:
    """A table that rich lays out when it knows the terminal's width.

    Args:
        table: The table.
        where: Whose columns: those of a terminal, or all of `--verbose`.
    """

    def __init__(self, table: doc.Table, where: doc.Format = "terminal") -> None:
        self._caption = table.caption
        self._columns, rows = table.part(where)
        most = table.most_rows if where == "terminal" else None
        self._rows = [[doc.plain(cell) for cell in row] for row in rows[:most]]
        self._left_out = len(rows) - len(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines, words = [], []
        for index, column in enumerate(self._columns):
            texts = [column.title, *(row[index] for row in self._rows)]
            lines.append(max(cell_len(line) for text in texts for line in text.split("\n")))
            words.append(
                max((cell_len(word) for text in texts for word in text.split()), default=0)
            )
        room = options.max_width - _BORDER * len(self._columns) - 1
        widths = fitting_widths(lines, words, room)
        yield self._by_row() if widths is None else self._table(widths)
        if self._left_out:
            yield Words(f"... and {self._left_out} more: --verbose")

    def _table(self, widths: Sequence[int]) -> RenderableType:
        shown = rich.Table(title=escape(self._caption), title_justify="left", title_style="bold")
        for column, width in zip(self._columns, widths, strict=True):
            # Folded rather than cut: half a layer's path names no layer.
            justify: JustifyMethod = "right" if column.is_number else "left"
            shown.add_column(column.title, justify=justify, overflow="fold", width=width)
        for row in self._rows:
            shown.add_row(*map(escape, row))
        return shown

    def _by_row(self) -> RenderableType:
        shown = rich.Table.grid(padding=(0, 2, 0, 0))
        shown.title, shown.title_justify = escape(self._caption), "left"
        shown.title_style = "bold"
        shown.add_column(overflow="fold", ratio=1)
        shown.add_column(overflow="fold", ratio=2)
        first, *others = self._columns
        for row in self._rows:
            shown.add_row(Words(first.title, style="bold"), Words(row[0], style="bold"))
            for column, cell in zip(others, row[1:], strict=True):
                shown.add_row(escape(f"  {column.title}"), escape(cell))
        return shown


def fitting_widths(lines: Sequence[int], words: Sequence[int], room: int) -> list[int] | None:
    """Return how wide each column is; None if the words do not fit beside each other.

    Args:
        lines: Of each column, the width at which nothing in it is wrapped.
        words: Of each column, the width of its longest word.
        room: How much there is for all of them.
    """
    for longest in _FOLDED_AT:
        widths = [min(width, longest) for width in words]
        if sum(widths) <= room:
            return _grown(widths, lines, room)
    return None


def _grown(widths: list[int], lines: Sequence[int], room: int) -> list[int]:
    # All that are wrapped grow together, one column of the terminal at a time.
    while growing := [index for index, width in enumerate(widths) if width < lines[index]]:
        for index in growing[: room - sum(widths)]:
            widths[index] += 1
        if sum(widths) == room:
            break
    return widths


def terminal(document: doc.Document, *, verbose: bool = False) -> RenderableType:
    """Return what rich prints; if `verbose`, with all columns and tables."""
    return Group(*_parts(document, "verbose" if verbose else "terminal"))


def _parts(document: doc.Document, where: doc.Format) -> Iterator[RenderableType]:
    verdict = document.verdict
    if verdict is not None and verdict.lines:
        yield _answer(verdict)
    if document.warning:
        yield _coloured(False, document.warning)
    # Parts with their own answer give their reasons themselves.
    if verdict is not None and not document.parts:
        yield from _grounds(verdict)
    for block in document.blocks:
        yield from _block(block, where)
    # Words, not strings: rich would read `[batch, 3]` in a string as markup.
    facts = () if verdict is None else verdict.lines[1:]
    yield from map(Words, (*facts, *document.findings, *document.remarks))
    if document.baseline is not None:
        yield from _block(document.baseline, where)


def _block(block: doc.Block, where: doc.Format) -> Iterator[RenderableType]:
    if isinstance(block, doc.Folded):
        for section in block.blocks:
            yield from _block(section, where)
    elif where not in block.shown:
        return
    elif isinstance(block, doc.Section):
        verdict = block.verdict
        if verdict is not None:
            yield Words(block.title, style="bold underline")
            if verdict.lines:
                yield _answer(verdict)
            yield from _grounds(verdict)
        for section in block.blocks:
            yield from _block(section, where)
        if verdict is not None:
            yield from map(Words, verdict.lines[1:])
    elif isinstance(block, doc.Table):
        yield TerminalTable(block, where)
    elif isinstance(block, doc.Text):
        words = _coloured(block.is_good, block.text)
        words.no_wrap, words.overflow = block.is_whole, "ignore" if block.is_whole else None
        yield words


def _answer(verdict: doc.Verdict) -> Words:
    line = verdict.lines[0]
    return _coloured(verdict.is_good, f"{verdict.word}: {line}" if verdict.word else line)


def _grounds(verdict: doc.Verdict) -> Iterator[RenderableType]:
    """Yield what an answer rests on."""
    yield from (_coloured(True, text) for text in verdict.held)
    yield from (_coloured(False, text) for text in verdict.first_reasons)
    yield from map(Words, verdict.notes)
    if more := len(verdict.reasons) - len(verdict.first_reasons):
        yield _coloured(False, f"... and {more} more")


def _coloured(is_good: bool | None, text: str) -> Words:
    style = "" if is_good is None else "green" if is_good else "bold red"
    return Words(text, style=style)

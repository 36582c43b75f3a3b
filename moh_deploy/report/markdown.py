"""Show a document as Markdown, for a comment on a pull request: the verdict first.

Nothing that a name holds is markup: no cell, tag, link or mention begins in it.
"""

import re
from collections.abc import Iterable, Iterator

from moh_deploy.report import document as doc
from moh_deploy.report.document import plain
from moh_deploy.system.replaceable import FileKind

# Every file begins with its heading, one of the third level.
MARKDOWN_FILE = FileKind.beginning_with("Markdown report of moh-deploy", rb"### ")


def markdown(document: doc.Document, about: doc.About | None = None) -> str:
    """Return the text of a file; without `about` it has no heading."""
    # Every part has an empty line before and behind it: of several in a row one is enough.
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_lines(document, about))).strip() + "\n"


def markdown_text(value: str) -> str:
    """Return text that Markdown shows as it is."""
    # A line break would end a cell, and `<` or `&` begin HTML, which Markdown lets through.
    text = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|@#~])", r"\\\1", text)


def _lines(document: doc.Document, about: doc.About | None) -> Iterator[str]:
    if about is not None:
        word = document.kind if document.verdict is None else _word(document.verdict)
        yield f"### {markdown_text(about.subject)}: {word}"
    if document.warning:
        yield from ("", f"**{markdown_text(document.warning)}**")
    if document.verdict is not None:
        yield from _verdict(document.verdict, with_reasons=not document.parts)
    # Before all tables: whether anything is worse is what a review asks first.
    if document.baseline is not None:
        yield from _block(document.baseline, 4)
    for block in document.blocks:
        yield from _block(block, 4)
    yield from _bullets((*document.findings, *document.remarks))


def _block(block: doc.Block, level: int) -> Iterator[str]:
    """Yield lines; headings are of this level."""
    if isinstance(block, doc.Folded):
        for section in block.blocks:
            yield from _block(section, level)
    elif "markdown" not in block.shown:
        return
    elif isinstance(block, doc.Section):
        if block.verdict is not None:
            title = f"{markdown_text(block.title)}: {_word(block.verdict)}"
            yield from ("", f"{'#' * level} {title}")
            yield from _verdict(block.verdict)
            level += 1
        for section in block.blocks:
            yield from _block(section, level)
    elif isinstance(block, doc.Table):
        yield from _table(block, level)
    elif isinstance(block, doc.Text):
        yield from ("", markdown_text(block.text))


def _word(verdict: doc.Verdict) -> str:
    """Return what is wrong in capitals."""
    return verdict.word.lower() if verdict.is_good else verdict.word


def _verdict(verdict: doc.Verdict, *, with_reasons: bool = True) -> Iterator[str]:
    yield from ("", *map(markdown_text, verdict.lines))
    if with_reasons:
        for note in verdict.notes:
            yield from ("", markdown_text(note))
        more = len(verdict.reasons) - len(verdict.first_reasons)
        cut = [f"and {more} more"] if more else []
        yield from _bullets((*verdict.held, *verdict.first_reasons, *cut))


def _bullets(texts: Iterable[str]) -> Iterator[str]:
    yield ""
    yield from (f"- {markdown_text(text)}" for text in texts)
    yield ""


def _table(table: doc.Table, level: int) -> Iterator[str]:
    columns, rows = table.part("markdown")
    # Columns without rows say nothing here; a page says `no data`.
    if not rows:
        return
    yield from ("", f"{'#' * level} {markdown_text(table.caption)}", "")
    yield _row(markdown_text(column.title) for column in columns)
    yield _row("---:" if column.is_number else "---" for column in columns)
    yield from (_row(map(_cell, row)) for row in rows)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: doc.Cell) -> str:
    text = markdown_text(plain(cell))
    return f"**{text}**" if isinstance(cell, doc.Status) and cell.is_good is False else text

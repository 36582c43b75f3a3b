"""Show a document in a terminal, where what is read first stands last."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text as Words

from moh_deploy.report.document import Block, Document, Folded, Section, Table, Text, Verdict
from moh_deploy.report.terminal_table import TerminalTable


def terminal(document: Document) -> RenderableType:
    """Return what rich prints."""
    return Group(*_parts(document))


def _parts(document: Document) -> Iterator[RenderableType]:
    for block in document.blocks:
        yield from _block(block)
    # Words, not strings: rich would read `[batch, 3]` in a string as markup.
    yield from map(Words, (*document.findings, *document.remarks))
    # What stands last is on the screen when the command has ended. Parts with their own answer have
    # given their reasons already.
    if document.verdict is not None:
        yield from _verdict(document.verdict, with_reasons=not document.parts)
    if document.baseline is not None:
        yield from _block(document.baseline)


def _block(block: Block) -> Iterator[RenderableType]:
    if isinstance(block, Folded):
        for section in block.blocks:
            yield from _block(section)
    elif "terminal" not in block.shown:
        return
    elif isinstance(block, Section):
        if block.verdict is not None:
            yield Words(block.title, style="bold underline")
        for section in block.blocks:
            yield from _block(section)
        if block.verdict is not None:
            yield from _verdict(block.verdict)
    elif isinstance(block, Table):
        yield TerminalTable(block)
    elif isinstance(block, Text):
        yield _coloured(block.is_good, block.text)


def _verdict(verdict: Verdict, *, with_reasons: bool = True) -> Iterator[RenderableType]:
    if with_reasons:
        yield from (_coloured(True, text) for text in verdict.held)
        yield from (_coloured(False, text) for text in verdict.first_reasons)
        yield from map(Words, verdict.notes)
        if more := len(verdict.reasons) - len(verdict.first_reasons):
            yield _coloured(False, f"... and {more} more")
    if verdict.lines:
        lines = "\n".join(verdict.lines)
        yield _coloured(verdict.is_good, f"{verdict.word}: {lines}" if verdict.word else lines)


def _coloured(is_good: bool | None, text: str) -> Words:
    style = "" if is_good is None else "green" if is_good else "bold red"
    return Words(text, style=style)

"""Text and tables of Markdown, in which nothing that a name holds is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence


class Markup(str):
    """Text that is Markdown already."""

    __slots__ = ()


def markdown_text(value: object) -> str:
    """Return text that Markdown shows as it is: no cell, tag, link or mention begins in it."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return f"{value:.3g}"
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|@#~])", r"\\\1", text)


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Yield its lines; None becomes a dash. Columns named with a leading `#` align right."""
    yield ""
    yield _row(name.lstrip("#") for name in columns)
    yield _row("---:" if name.startswith("#") else "---" for name in columns)
    yield from map(_row, rows)


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join('-' if cell is None else markdown_text(cell) for cell in cells)} |"

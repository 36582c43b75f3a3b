"""The look that the reports share."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table; None becomes a dash. Columns named with a leading `#` align right."""
    result = Table(title=escape(title), title_justify="left", title_style="bold")
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith("#") else "left"
        # Folded rather than cut: half a layer's path names no layer.
        result.add_column(column.lstrip("#"), justify=justify, overflow="fold")
    for row in rows:
        result.add_row(*(escape(_cell(value)) for value in row))
    return result


def verdict(ok: bool, text: str) -> Text:
    """Return a line in green or red."""
    return Text(text, style="green" if ok else "bold red")


def line(text: str) -> Text:
    """Return a line as it is: rich would read `[batch, 3]` in a plain string as markup."""
    return Text(text)


def heading(text: str) -> Text:
    """Return a line that begins a part of a report."""
    return Text(text, style="bold underline")


def percent(share: float | None) -> str | None:
    """Return `62.5 %`."""
    return None if share is None else f"{100 * share:.1f} %"


def count(number: int, noun: str) -> str:
    """Return `1 layer` or `3 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def figure(value: float | None) -> str | None:
    """Return a measured number to three digits."""
    return None if value is None else f"{value:.3g}"


def si(value: int | None) -> str | None:
    """Return a large count with its SI prefix, `1.5 G`, to put a unit behind."""
    if value is None:
        return None
    scaled, prefixes = float(value), iter(" kMGTP")
    prefix = next(prefixes)
    while scaled >= 1000 and prefix != "P":
        scaled, prefix = scaled / 1000, next(prefixes)
    return f"{scaled:.3g} {prefix.strip()}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)

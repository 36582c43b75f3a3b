"""Spelling suggestions for unknown names in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_LISTED = 10


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `Did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean '{close[0]}'?" if close else ""


def shortened(names: Iterable[str], *, limit: int = MAX_LISTED) -> str:
    """Return the names joined by commas; those after the first `limit` only as a count."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more

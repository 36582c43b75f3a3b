"""Spelling suggestions for unknown names in error messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MAX_LISTED = 10


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `Did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean '{close[0]}'?" if close else ""


def nearly_named(names: Iterable[str], known: Iterable[str]) -> str | None:
    """Return the first name that is a known one misspelt; None if there is none.

    Values of such names are never taken in their order. `arr_0` is what numpy calls an array
    without a name.
    """
    known = list(known)
    own = (one for one in names if one not in known and not re.fullmatch(r"arr_\d+", one))
    return next((name for name in own if did_you_mean(name, known)), None)


def shortened(names: Iterable[str], *, limit: int = MAX_LISTED) -> str:
    """Return the names joined by commas; those after the first `limit` only as a count."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more

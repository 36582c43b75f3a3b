"""Spelling suggestions for unknown names in error messages."""

import difflib
import re
from collections.abc import Iterable, Sequence

MAX_LISTED = 10


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `Did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean '{close[0]}'?" if close else ""


def nearly_named(names: Iterable[str], known: Sequence[str]) -> tuple[str, str] | None:
    """Return the first name that is nearly a known one, and `Did you mean 'x'?`; None if values of
    these names may be taken in their order.

    It is misspelt, or a part of the name of another place: `mask` where `attention_mask` is
    elsewhere. `arr_0` is what numpy calls an array without a name.
    """
    for place, name in enumerate(names):
        if name in known or re.fullmatch(r"arr_\d+", name):
            continue
        suggestion = did_you_mean(name, known)
        for index, other in enumerate(known):
            if index != place and _words(name) <= _words(other) and not suggestion:
                suggestion = f"Did you mean '{other}'?"
        if suggestion:
            return name, suggestion
    return None


def _words(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", name.lower()))


def shortened(names: Iterable[str], *, limit: int = MAX_LISTED) -> str:
    """Return the names joined by commas; those after the first `limit` only as a count."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more

"""YAML texts: written from changed values, and spoilt by what YAML alone has."""

from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.changed_bytes import byte_changes, change_bytes
from tests.fuzz.changed_values import change_values, value_changes

_TOKENS = (
    "2001-99-99",
    "!!int x",
    "!!float x",
    "!!timestamp x",
    "!!binary x",
    "!!set {a}",
    "!!omap [a: 1]",
    "!!python/name:os.system",
    "!a b",
    "&a",
    "*a",
    "&a [*a]",
    "<<: *a",
    "<<",
    "? [a]",
    "? ",
    ": ",
    "- ",
    "{" * 200,
    "[" * 60,
    "}",
    "]",
    '"\\ud800"',
    '"\\UFFFFFFFF"',
    "%YAML 1.1\n---\n",
    "---\n",
    "...\n",
    "9" * 5000,
    "0x" + "f" * 100,
    "1_000",
    "1:30",
    ".nan",
    ".inf",
    "=",
    "~",
    "| \n x",
    "> \n",
    "\t",
    "#",
    "\x00",
    "\x07",
    "\ufeff",
    "'",
    '"',
    "@",
    "`",
    ", ",
    "\n",
    "  ",
    "a: 1\n",
    "null",
    "no",
    "!!str",
)


def changed_yaml(document: Any) -> st.SearchStrategy[bytes]:
    """Return a strategy for texts that are hardly this document any more."""
    text = yaml.safe_dump(document)

    def spoilt(insertions: list[tuple[int, str]]) -> bytes:
        found = text
        for place, token in insertions:
            at = place * len(found) >> 16
            found = found[:at] + token + found[at:]
        return found.encode("utf-8", "surrogatepass")

    places = st.integers(0, 2**16 - 1)
    return st.one_of(
        value_changes.map(lambda changes: _dumped(change_values(document, changes))),
        st.lists(st.tuples(places, st.sampled_from(_TOKENS)), min_size=1, max_size=3).map(spoilt),
        byte_changes.map(lambda changes: change_bytes(text.encode(), changes)),
    )


def _dumped(value: Any) -> bytes:
    """Numbers of more digits than Python writes, and half a surrogate pair, as they come."""
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")

"""Let Python look for garbage less often than a program of many objects that stay makes it do."""

from __future__ import annotations

import gc

_NEW_OBJECTS = 10_000


def collect_rarely() -> None:
    """Look for unreachable cycles whenever 10,000 objects are new, for the rest of the process.

    After 700, which is Python's default, looking took 1.6 of the 20 s of an export, most of it
    while modules were imported, and the model traced and translated.
    """
    gc.set_threshold(_NEW_OBJECTS)

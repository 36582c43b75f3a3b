"""Figures of a run beside those of a baseline file."""

from __future__ import annotations

from moh_deploy.report.baseline.result import RatchetEntry, RatchetResult
from moh_deploy.report.html.tables import Status, Table, number

_COLUMNS = ("figure", "of", "#in the file", "#now", "#may be at worst", "outcome")


def ratchet_table(result: RatchetResult | None) -> Table | None:
    """Return every figure; None without a baseline file."""
    if result is None:
        return None
    rows = [
        (one.name, one.group, number(one.was), number(one.now), number(one.limit), _status(one))
        for one in result.entries
    ]
    return Table(result.summary, _COLUMNS, rows)


def _status(one: RatchetEntry) -> Status:
    if one.outcome in ("worse", "gone"):
        return Status(one.outcome, False)
    return Status(one.outcome, None if one.outcome in ("new", "not compared") else True)

"""What a report says of its comparison with a baseline file."""

from __future__ import annotations

from moh_deploy.report.baseline.result import RatchetEntry, RatchetResult
from moh_deploy.report.document import CiCase, CiOutcome, CiSuite, Section, Status, Table, Verdict
from moh_deploy.report.formats import PAGE

_COLUMNS = ("figure", "of", "#in the file", "#now", "#may be at worst", "outcome")


def baseline_section(result: RatchetResult | None) -> Section | None:
    """Return every figure, what is worse, and what could be tightened; None without a file."""
    if result is None:
        return None
    rows = [
        (
            entry.name,
            entry.group,
            entry.was,
            entry.now,
            entry.limit,
            Status(entry.outcome, _is_good(entry)),
        )
        for entry in result.entries
    ]
    verdict = Verdict(
        "WORSE" if result.reasons else "NO WORSE",
        not result.reasons,
        lines=(result.summary,),
        reasons=result.reasons,
        notes=tuple(f"better: {text}" for text in result.better),
    )
    table = Table(result.summary, _COLUMNS, rows, "ratchet", PAGE)
    return Section("Baseline file", (table,), verdict)


def baseline_suites(result: RatchetResult | None) -> tuple[CiSuite, ...]:
    """Return a test case for each figure, and one for the verdict; nothing without a file."""
    if result is None:
        return ()
    outcome: CiOutcome = "failure" if result.reasons else "passed"
    verdict = CiCase("baseline", "verdict", outcome, (*result.reasons, result.summary)[0])
    return (CiSuite((verdict, *map(_case, result.entries)), f"baseline {result.file}"),)


def _is_good(entry: RatchetEntry) -> bool | None:
    if entry.outcome in ("worse", "gone"):
        return False
    return None if entry.outcome in ("new", "not compared") else True


def _case(entry: RatchetEntry) -> CiCase:
    outcomes: dict[bool | None, CiOutcome] = {True: "passed", False: "failure", None: "skipped"}
    name = f"{entry.group}: {entry.name}"
    return CiCase("baseline", name, outcomes[_is_good(entry)], entry.sentence)

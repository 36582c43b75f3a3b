"""How a comparison with a baseline file looks to people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moh_deploy.report.junit_document import Outcome, TestCase, TestSuite
from moh_deploy.report.tables import line, verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moh_deploy.report.baseline.result import RatchetEntry, RatchetResult


def ratchet_lines(result: RatchetResult) -> Iterator[RenderableType]:
    """Yield what is worse, what could be tightened, and the counts."""
    yield from (verdict(False, text) for text in result.reasons)
    yield from (line(f"better: {text}") for text in result.better)
    yield verdict(not result.reasons, result.summary)


def ratchet_texts(result: RatchetResult) -> Iterator[str]:
    """Yield the same as lines of plain text."""
    yield from (f"worse: {text}" for text in result.reasons)
    yield from (f"better: {text}" for text in result.better)
    yield result.summary


def ratchet_suite(result: RatchetResult) -> TestSuite:
    """Return a test case for each figure, and one for the verdict."""
    verdict: Outcome = "failure" if result.reasons else "passed"
    said = (*result.reasons, result.summary)[0]
    cases = (TestCase("baseline", "verdict", verdict, said), *map(_kept, result.entries))
    return TestSuite(f"baseline {result.file}", cases)


def _kept(entry: RatchetEntry) -> TestCase:
    outcome: Outcome = "passed" if entry.outcome in ("held", "better") else "skipped"
    if entry.outcome in ("worse", "gone"):
        outcome = "failure"
    return TestCase("baseline", f"{entry.group}: {entry.name}", outcome, entry.sentence)

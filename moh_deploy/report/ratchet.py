"""How a comparison with a baseline file looks to people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moh_deploy.report.tables import line, verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moh_deploy.ratchet.result import RatchetResult


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

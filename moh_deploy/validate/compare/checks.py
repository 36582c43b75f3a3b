"""Checks beside outputs, layers and metrics: stored weights, and how many tokens may flip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.validate.accuracy.metric_parity import MetricVerdict
from moh_deploy.validate.compare.agreement import Flips
from moh_deploy.validate.compare.condition import FlipsCondition


@dataclass(frozen=True)
class Check:
    """One more thing that was judged.

    Attributes:
        name: `stored weights`, or the condition as it was written.
        measured: A sentence on what was found.
        verdict: Only `passed` is a pass.
        asked: It is a condition of the user's.
    """

    name: str
    measured: str
    verdict: MetricVerdict
    asked: bool = False

    @property
    def reason(self) -> str | None:
        """Why it did not pass; None if it did."""
        return None if self.verdict == "passed" else f"{self.name}: {self.measured}"


def check_flips(flips: Flips | None, conditions: Sequence[FlipsCondition]) -> tuple[Check, ...]:
    """Judge how many tokens chose other heads; None where gates were not compared."""
    if flips is None:
        why = "routing was not compared, so flips are not known."
        return tuple(
            Check(condition.text.strip(), why, "cannot tell", True) for condition in conditions
        )
    found = f"{flips.tokens} of {flips.of} tokens chose other heads."
    return tuple(
        Check(
            condition.text.strip(),
            found,
            "passed" if flips.tokens <= condition.allowed(flips.of) else "failed",
            asked=True,
        )
        for condition in conditions
    )

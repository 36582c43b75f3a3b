"""The table of how much accuracy may be lost, each rule with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Write values of a metric in a sentence: shares in percent, differences of them in points.


def shown(metric: str, value: float) -> str:
    """Return `97.78 %`, or a number to five digits."""
    return f"{100 * value:.2f} %" if _is_share(metric) else f"{value:.5g}"


def shown_gap(metric: str, *values: float) -> str:
    """Return `0.50 points`, or `-0.30 to 0.50 points` for two; numbers alone for other metrics."""
    if _is_share(metric):
        return f"{' to '.join(f'{100 * value:.2f}' for value in values)} points"
    return " to ".join(f"{value:.3g}" for value in values)


def _is_share(metric: str) -> bool:
    return metric.startswith("top-")


@dataclass(frozen=True)
class AccuracyRule:
    """The largest loss of a metric that is accepted.

    Attributes:
        max_drop: In units of the metric: 0.01 is one point of top-1; None to take the relative one.
        max_relative_drop: As a share of the reference's value.
        min_samples: With fewer, nothing can be told: a bootstrap covers less than it says.
        reason: Why these figures.
    """

    max_drop: float | None
    max_relative_drop: float
    min_samples: int
    reason: str

    def allowed(self, reference: float) -> float:
        """Return by how much the metric may be worse than the reference's value."""
        # An absolute limit, where there is one, takes the place of the relative one.
        return self.max_relative_drop * abs(reference) if self.max_drop is None else self.max_drop


_USUAL = "1 % of the reference's value: MLPerf Inference asks for 99 % of it"

CALLABLE = "callable"

ACCURACY_RULES: Mapping[str, AccuracyRule] = dict.fromkeys(
    ["top-1", "top-5", "perplexity", CALLABLE], AccuracyRule(None, 0.01, 30, _USUAL)
)

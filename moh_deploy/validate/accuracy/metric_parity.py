"""The value of a metric on both sides, and the verdict on the difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moh_deploy.report.report import in_json

# The table of how much accuracy may be lost, each rule with its reason.

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
    """The largest loss of a metric that is accepted."""

    # In units of the metric: 0.01 is one point of top-1; None to take the relative one.
    max_drop: float | None
    max_relative_drop: float  # As a share of the reference's value
    min_samples: int  # With fewer, nothing can be told: a bootstrap covers less than it says
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


Better = Literal["higher", "lower"]
MetricVerdict = Literal["passed", "failed", "cannot tell"]


@dataclass(frozen=True)
class ChangedSample:
    """A sample that the two sides do not score alike."""

    sample: int  # Its number, over all files
    file: str
    # What the reference gets for it: 1 or 0 for right or wrong, the share of right tokens, the mean
    # negative log-likelihood of a token, or what the callable said.
    reference_score: float
    package_score: float
    label: int | None = None  # Its class; None where a sample has no one class
    # The class that the reference takes for likeliest; or None.
    reference_class: int | None = None
    package_class: int | None = None


@dataclass(frozen=True)
class MetricParity:
    """One metric, over all samples that have a label."""

    metric: str  # `top-1`, `top-5`, `perplexity`, or `module:function`
    output: str | None  # the output that is scored; None where a callable is given all of them
    better: Better
    samples: int  # how many were scored. A sample is what was drawn anew: an image, a sequence.
    labels: int  # how many labels were scored: as many, or tokens
    ignored: int  # how many labels were left out, because they have the number for that
    shifted: bool  # the output at a position was scored with the label of the next
    against: str  # where the reference's values come from
    reference: float  # the metric of the reference; NaN if a sample has no score
    package: float
    # Of `package - reference`, by paired bootstrap; or None.
    interval: tuple[float, float] | None
    confidence: float
    resamples: int  # how many times samples were drawn anew
    seed: int
    # Two samples were added for the interval, one lost and one won: without, it would be too narrow
    # where few samples change.
    smoothed: bool
    worse: int
    improved: int
    # Of McNemar's exact test; None where a sample is more than right or wrong.
    p_value: float | None
    rule: AccuracyRule  # what may be lost
    allowed_drop: float  # the same in units of the metric
    # Some samples that changed by more than rounding, those that lost most first.
    changed: tuple[ChangedSample, ...]
    verdict: MetricVerdict  # `passed` only where the whole interval is within what may be lost
    reason: str | None  # a sentence on why it did not pass; None if it did

    @property
    @in_json()
    def difference(self) -> float:
        """The package's metric minus the reference's."""
        return self.package - self.reference

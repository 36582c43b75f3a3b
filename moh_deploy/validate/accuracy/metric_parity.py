"""The value of a metric on both sides, and the verdict on the difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moh_deploy.report.json import in_json
from moh_deploy.validate.accuracy.rules import AccuracyRule

Better = Literal["higher", "lower"]
MetricVerdict = Literal["passed", "failed", "cannot tell"]


@dataclass(frozen=True)
class ChangedSample:
    """A sample that the two sides do not score alike.

    Attributes:
        sample: Its number, over all files.
        file: Where it is.
        reference_score: What the reference gets for it: 1 or 0 for right or wrong, the share of
            right tokens, the mean negative log-likelihood of a token, or what the callable said.
        package_score: The same of the package.
        label: Its class; None where a sample has no one class.
        reference_class: The class that the reference takes for likeliest; None likewise.
        package_class: The same of the package.
    """

    sample: int
    file: str
    reference_score: float
    package_score: float
    label: int | None = None
    reference_class: int | None = None
    package_class: int | None = None


@dataclass(frozen=True)
class MetricParity:
    """One metric, over all samples that have a label.

    Attributes:
        metric: `top-1`, `top-5`, `perplexity`, or `module:function`.
        output: The output that is scored; None where a callable is given all of them.
        better: Which values are better.
        samples: How many were scored. A sample is what was drawn anew: an image, a sequence.
        labels: How many labels were scored: as many, or tokens.
        ignored: How many labels were left out, because they have the number for that.
        shifted: The output at a position was scored with the label of the next.
        against: Where the reference's values come from.
        reference: The metric of the reference; NaN if a sample has no score.
        package: The metric of the package or engine.
        interval: Of `package - reference`, by paired bootstrap; None where there is none.
        confidence: Of the interval.
        resamples: How many times samples were drawn anew.
        seed: Of the draws.
        smoothed: Two samples were added for the interval, one lost and one won: without, it would
            be too narrow where few samples change.
        worse: How many samples have a worse score in the package.
        improved: How many have a better one.
        p_value: Of McNemar's exact test; None where a sample is more than right or wrong.
        rule: What may be lost.
        allowed_drop: The same in units of the metric.
        changed: Some samples that changed by more than rounding, those that lost most first.
        verdict: `passed` only where the whole interval is within what may be lost.
        reason: A sentence on why it did not pass; None if it did.
    """

    metric: str
    output: str | None
    better: Better
    samples: int
    labels: int
    ignored: int
    shifted: bool
    against: str
    reference: float
    package: float
    interval: tuple[float, float] | None
    confidence: float
    resamples: int
    seed: int
    smoothed: bool
    worse: int
    improved: int
    p_value: float | None
    rule: AccuracyRule
    allowed_drop: float
    changed: tuple[ChangedSample, ...]
    verdict: MetricVerdict
    reason: str | None

    @property
    @in_json()
    def difference(self) -> float:
        """The package's metric minus the reference's."""
        return self.package - self.reference

"""Judge whether an arm loses no more quality than was planned, sample by sample, by bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moh_deploy.decision.promise import Promise
from moh_deploy.validate.accuracy.bootstrap import resampled
from moh_deploy.validate.accuracy.judge import ONE_LOST_ONE_WON
from moh_deploy.validate.accuracy.metric_parity import ACCURACY_RULES, CALLABLE, shown, shown_gap
from moh_deploy.validate.accuracy.metrics import Metric
from moh_deploy.validate.reference.differences import Float64Array


@dataclass(frozen=True)
class SampleScores:
    """The score of every sample, of one metric and all arms.

    Attributes:
        metric: What scored them.
        weights: How many labels each total adds up, [N], 1 or more.
        totals: Name of each arm to its totals, [N].
    """

    metric: Metric
    weights: Float64Array
    totals: dict[str, Float64Array]

    @property
    def right_or_wrong(self) -> bool:
        """Whether every sample is one label, and its score, where it has one, 1 or 0."""
        every = np.concatenate(list(self.totals.values()))
        every = every[np.isfinite(every)]  # An arm without a score says nothing of the others.
        return bool((self.weights == 1).all() and np.isin(every, (0.0, 1.0)).all())

    def value(self, arm: str) -> float:
        """Return the metric of an arm; NaN if a sample has no score."""
        with np.errstate(invalid="ignore"):
            mean = self.totals[arm].sum() / self.weights.sum()
            return float(self.metric.value(np.array([mean]))[0])

    def interval(self, arm: str, confidence: float) -> tuple[float, float] | None:
        """Return where the metric of an arm is over all samples that there might be."""
        if not np.isfinite(self.totals[arm]).all():
            return None
        # Labels of a sample, and what they are worth together. [N, 2]
        rows = np.stack([self.weights, self.totals[arm]], axis=1)
        # One more that is right and one that is wrong: of all right, it would have no width.
        rows = np.concatenate([rows, [[1.0, 1.0], [1.0, 0.0]]]) if self.right_or_wrong else rows
        drawn = resampled(rows, lambda sums: self.metric.value(sums[:, 1] / sums[:, 0]))
        tail = (1 - confidence) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return float(low), float(high)


def quality_promise(
    scores: SampleScores, arm: str, reference: str, *, may_lose: float, confidence: float
) -> Promise:
    """Judge whether an arm loses at most so much of a metric against the reference.

    Args:
        scores: Of both.
        arm: Its name.
        reference: That of the reference.
        may_lose: In units of the metric.
        confidence: Of the interval.
    """
    name, count = scores.metric.name, len(scores.weights)
    promise = f"loses at most {shown_gap(name, may_lose)} of {name}"
    without = {side: int((~np.isfinite(scores.totals[side])).sum()) for side in (arm, reference)}
    if any(without.values()):
        said = "; ".join(
            f"{missing} of {count} samples have no finite {name} in '{text}'"
            for text, missing in without.items()
            if missing
        )
        # An answer that is no number is no answer: lost, if it is the arm's.
        broken = 0.0 if without[arm] else 1.0
        return Promise(
            "quality", promise, said, math.nan, None, None, may_lose, 1.0, broken, count, "samples",
            math.nan, math.nan, said,
        )  # fmt: skip
    drawn = _losses(scores, arm, reference)
    tail = (1 - confidence) / 2
    low, high = (float(array) for array in np.quantile(drawn, [tail, 1 - tail]))
    values = scores.value(arm), scores.value(reference)
    loss = (values[1] - values[0]) * (1 if scores.metric.better == "higher" else -1)
    few, least = None, ACCURACY_RULES.get(name, ACCURACY_RULES[CALLABLE]).min_samples
    if count < least:
        few = f"{count} samples are too few to show that it is kept, {least} are needed"
    went = f"{shown(name, values[1])} to {shown(name, values[0])}"
    return Promise(
        kind="quality",
        text=promise,
        came=f"{went}: loss {shown_gap(name, loss)} ({shown_gap(name, low, high)})",
        estimate=loss,
        low=low,
        high=high,
        limit=may_lose,
        # One is added to both: no finite number of draws shows a probability of 0.
        p_kept=1.0 if few else (1 + int((drawn >= may_lose).sum())) / (1 + len(drawn)),
        p_broken=(1 + int((drawn <= may_lose).sum())) / (1 + len(drawn)),
        count=count,
        unit="samples",
        standard_error=float(drawn.std()),
        surplus=may_lose - loss,
        why_unknown=few,
    )


def _losses(scores: SampleScores, arm: str, reference: str) -> Float64Array:
    """Return the loss for samples drawn anew, the same of both sides, [R]."""
    value, sign = scores.metric.value, 1 if scores.metric.better == "higher" else -1
    # A sample is drawn with what both sides make of it: what both lose cancels. [N, 3]
    rows = np.stack([scores.weights, scores.totals[reference], scores.totals[arm]], axis=1)
    # One sample lost and one won besides: where few change the interval would be too narrow.
    drawn = np.concatenate([rows, ONE_LOST_ONE_WON]) if scores.right_or_wrong else rows

    def loss(sums: Float64Array) -> Float64Array:
        return sign * (value(sums[:, 1] / sums[:, 0]) - value(sums[:, 2] / sums[:, 0]))

    return resampled(drawn, loss)

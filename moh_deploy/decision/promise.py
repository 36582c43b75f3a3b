"""A promise of the plan about an alternative, and what was measured of it."""

import math
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np

from moh_deploy.report.report import HIDDEN
from moh_deploy.validate.accuracy.bootstrap import resampled
from moh_deploy.validate.accuracy.judge import ONE_LOST_ONE_WON
from moh_deploy.validate.accuracy.metric_parity import ACCURACY_RULES, CALLABLE, shown, shown_gap
from moh_deploy.validate.accuracy.task import Metric
from moh_deploy.validate.reference.differences import Float64Array

# Student's t distribution, for intervals and tests of a mean of few numbers.

_HALVINGS = 80


def upper_tail(t: float, freedom: int) -> float:
    """Return the probability of a number above t.

    Args:
        t: The number.
        freedom: Degrees of freedom, at least 1.

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    # A(t), the probability of a number between -t and t, as a sum of powers of cos(angle).
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    for power in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= (power - 1) / power * cosine**2
        total += term
    if freedom % 2 == 0:
        within = math.sin(angle) * total
    elif freedom == 1:
        within = 2 * angle / math.pi
    else:
        within = 2 / math.pi * (angle + math.sin(angle) * total)
    return (1 - within) / 2


@cache
def upper_point(tail: float, freedom: int) -> float:
    """Return the number that is exceeded with this probability, below one half."""
    low, high = 0.0, 1.0
    while upper_tail(high, freedom) > tail:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, freedom) > tail else (low, middle)
    return high


def normal_point(tail: float) -> float:
    """Return the same of the normal distribution, which t becomes with many degrees of freedom."""
    return -NormalDist().inv_cdf(tail)


PromiseKind = Literal["quality", "latency"]
Unit = Literal["samples", "rounds"]

_POWER = 0.8
_MOST_NEEDED = 100_000_000


@dataclass(frozen=True)
class Promise:
    """One promise, such as `loses at most 0.50 points of top-1`, and what the data say of it."""

    kind: PromiseKind
    text: str  # in words
    came: str  # what was measured, in words
    # Of a metric the loss against the reference in its own units; of time the gain, as a share of
    # the reference's.
    estimate: float
    # Lower end of the interval of the plan's confidence; or None.
    low: float | None
    high: float | None  # upper end
    limit: float
    # The probability of such data were the promise just not kept: small shows that it is.
    p_kept: float
    p_broken: float  # the same were it just kept: small shows that it is not
    count: int  # samples, or rounds of runs
    unit: Unit  # which of the two
    # Of the estimate, in the unit in which `surplus` is.
    standard_error: float = field(metadata=HIDDEN)
    surplus: float = field(metadata=HIDDEN)  # by how much the promise is kept; below 0 it is not
    # Why nothing can be shown, whatever the numbers; None if something can.
    why_unknown: str | None = None

    def enough(self, level: float) -> int | None:
        """Return about how many samples or rounds would tell, in eight of ten cases, if what was
        measured is true; None where no number would."""
        if not self.surplus or not math.isfinite(self.surplus + self.standard_error):
            return None
        # The standard error falls with the root of the count: it has to fit into the surplus as
        # often as the level and the power ask for.
        times = (normal_point(level) + normal_point(1 - _POWER)) * self.standard_error
        needed = max(self.count * (times / self.surplus) ** 2, 1.0)
        if needed > _MOST_NEEDED:
            return None
        digits = 10 ** max(0, math.floor(math.log10(needed)) - 1)  # two that say something
        return int(digits * math.ceil(needed / digits))


# Judge whether an alternative loses no more quality than was planned, sample by sample, by
# bootstrap.


@dataclass(frozen=True)
class SampleScores:
    """The score of every sample, of one metric and all alternatives."""

    metric: Metric  # what scored them
    weights: Float64Array  # how many labels each total adds up, [N], 1 or more
    totals: dict[str, Float64Array]  # name of each alternative to its totals, [N]

    @property
    def right_or_wrong(self) -> bool:
        """Whether every sample is one label, and its score, where it has one, 1 or 0."""
        every = np.concatenate(list(self.totals.values()))
        every = every[
            np.isfinite(every)
        ]  # An alternative without a score says nothing of the others.
        return bool((self.weights == 1).all() and np.isin(every, (0.0, 1.0)).all())

    def value(self, alternative: str) -> float:
        """Return the metric of an alternative; NaN if a sample has no score."""
        with np.errstate(invalid="ignore"):
            mean = self.totals[alternative].sum() / self.weights.sum()
            return float(self.metric.value(np.array([mean]))[0])

    def interval(self, alternative: str, confidence: float) -> tuple[float, float] | None:
        """Return where the metric of an alternative is over all samples that there might be."""
        if not np.isfinite(self.totals[alternative]).all():
            return None
        # Labels of a sample, and what they are worth together. [N, 2]
        rows = np.stack([self.weights, self.totals[alternative]], axis=1)
        # One more that is right and one that is wrong: of all right, it would have no width.
        rows = np.concatenate([rows, [[1.0, 1.0], [1.0, 0.0]]]) if self.right_or_wrong else rows
        drawn = resampled(rows, lambda sums: self.metric.value(sums[:, 1] / sums[:, 0]))
        tail = (1 - confidence) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return float(low), float(high)


def quality_promise(
    scores: SampleScores, alternative: str, reference: str, *, may_lose: float, confidence: float
) -> Promise:
    """Judge whether an alternative loses at most so much of a metric against the reference.

    Args:
        scores: Of both.
        alternative: Its name.
        reference: That of the reference.
        may_lose: In units of the metric.
        confidence: Of the interval.
    """
    name, count = scores.metric.name, len(scores.weights)
    promise = f"loses at most {shown_gap(name, may_lose)} of {name}"
    without = {
        side: int((~np.isfinite(scores.totals[side])).sum()) for side in (alternative, reference)
    }
    if any(without.values()):
        said = "; ".join(
            f"{missing} of {count} samples have no finite {name} in '{text}'"
            for text, missing in without.items()
            if missing
        )
        # An answer that is no number is no answer: lost, if it is the alternative's.
        broken = 0.0 if without[alternative] else 1.0
        return Promise(
            "quality", promise, said, math.nan, None, None, may_lose, 1.0, broken, count, "samples",
            math.nan, math.nan, said,
        )  # fmt: skip
    drawn = _losses(scores, alternative, reference)
    tail = (1 - confidence) / 2
    low, high = (float(array) for array in np.quantile(drawn, [tail, 1 - tail]))
    values = scores.value(alternative), scores.value(reference)
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


def _losses(scores: SampleScores, alternative: str, reference: str) -> Float64Array:
    """Return the loss for samples drawn anew, the same of both sides, [R]."""
    value, sign = scores.metric.value, 1 if scores.metric.better == "higher" else -1
    # A sample is drawn with what both sides make of it: what both lose cancels. [N, 3]
    rows = np.stack([scores.weights, scores.totals[reference], scores.totals[alternative]], axis=1)
    # One sample lost and one won besides: where few change the interval would be too narrow.
    drawn = np.concatenate([rows, ONE_LOST_ONE_WON]) if scores.right_or_wrong else rows

    def loss(sums: Float64Array) -> Float64Array:
        return sign * (value(sums[:, 1] / sums[:, 0]) - value(sums[:, 2] / sums[:, 0]))

    return resampled(drawn, loss)

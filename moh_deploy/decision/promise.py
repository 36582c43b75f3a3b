"""A promise of the plan about an arm, and what was measured of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist
from typing import Literal

from moh_deploy.report.json import HIDDEN

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
    """One promise, such as `loses at most 0.50 points of top-1`, and what the data say of it.

    Attributes:
        text: In words.
        came: What was measured, in words.
        estimate: Of a metric the loss against the reference in its own units; of time the gain, as
            a share of the reference's.
        low: Lower end of the interval of the plan's confidence; None where there is none.
        high: Upper end.
        p_kept: The probability of such data were the promise just not kept: small shows that it is.
        p_broken: The same were it just kept: small shows that it is not.
        count: Samples, or rounds of runs.
        unit: Which of the two.
        standard_error: Of the estimate, in the unit in which `surplus` is.
        surplus: By how much the promise is kept; below 0 it is not.
        why_unknown: Why nothing can be shown, whatever the numbers; None if something can.
    """

    kind: PromiseKind
    text: str
    came: str
    estimate: float
    low: float | None
    high: float | None
    limit: float
    p_kept: float
    p_broken: float
    count: int
    unit: Unit
    standard_error: float = field(metadata=HIDDEN)
    surplus: float = field(metadata=HIDDEN)
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

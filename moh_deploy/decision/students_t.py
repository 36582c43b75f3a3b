"""Student's t distribution, for intervals and tests of a mean of few numbers."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

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

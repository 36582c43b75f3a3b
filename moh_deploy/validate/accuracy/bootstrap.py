"""Tell a difference between two sides from chance: paired bootstrap, and McNemar's exact test."""

import math
from collections.abc import Callable

import numpy as np

from moh_deploy.validate.accuracy.task import IntArray
from moh_deploy.validate.reference.differences import Float64Array

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0

_CHUNK = 2_000_000  # draws at once


def paired_bootstrap(
    rows: Float64Array,
    statistic: Callable[[Float64Array], Float64Array],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic of sums over samples; see `resampled`."""
    # Percentiles of the resampled statistic: no distribution is assumed.
    tail = (1 - CONFIDENCE) / 2
    drawn = resampled(rows, statistic, resamples=resamples, seed=seed)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def resampled(
    rows: Float64Array,
    statistic: Callable[[Float64Array], Float64Array],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Float64Array:
    """Return a statistic of sums over samples that were drawn anew, [resamples].

    A sample is drawn with all of its row, so that what both sides have in common cancels.

    Args:
        rows: One for each sample, [N, K].
        statistic: Sums of rows [R, K] to the statistic of each, [R].
        resamples: How many times N samples are drawn with replacement.
        seed: Of the draws.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    # Samples that are alike are drawn together: [U, K] and how many there are of each.
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    # Right-or-wrong scores have four kinds of samples at most, where one multinomial draw is far
    # less work than N single ones.
    draw = _of_kinds if len(kinds) < len(rows) / 4 else _of_samples
    rng, chunk = np.random.default_rng(seed), max(1, _CHUNK // len(rows))
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    sums = [draw(rng, kinds, counts, size) for size in sizes]
    return statistic(np.concatenate(sums))


def _of_kinds(
    rng: np.random.Generator, kinds: Float64Array, counts: IntArray, size: int
) -> Float64Array:
    """Return sums of samples drawn, [R, K], by how many of each kind are drawn."""
    drawn: Float64Array = rng.multinomial(counts.sum(), counts / counts.sum(), size=size) @ kinds
    return drawn


def _of_samples(
    rng: np.random.Generator, kinds: Float64Array, counts: IntArray, size: int
) -> Float64Array:
    """Return the same by drawing each: a quarter of the time where no two samples are alike."""
    count, of_sample = int(counts.sum()), np.repeat(np.arange(len(kinds)), counts)
    drawn = of_sample[rng.integers(count, size=(size, count))]  # [R, N], numbers of kinds
    # One bincount for all resamples: each has a range of numbers of its own. times: [R, U].
    drawn += len(kinds) * np.arange(size)[:, None]
    times = np.bincount(drawn.ravel(), minlength=size * len(kinds)).reshape(size, len(kinds))
    sums: Float64Array = times @ kinds
    return sums


def mcnemar(lost: int, won: int) -> float:
    """Return the probability of a split at least this uneven if both directions are equally likely.

    Args:
        lost: Samples that the reference alone gets right.
        won: Samples that the package alone gets right.

    Source: McNemar (1947); the exact form is a two-sided sign test.
    """
    n, k = lost + won, min(lost, won)
    # Logarithms of the binomials C(n, i), since n! overflows beyond 170.
    log = math.lgamma
    log_tail = [log(n + 1) - log(i + 1) - log(n - i + 1) for i in range(k + 1)]
    # The largest is taken out before exp, and comes back in the factor in front of the sum.
    most = max(log_tail)
    tail = math.exp(most - n * math.log(2)) * math.fsum(
        math.exp(value - most) for value in log_tail
    )
    return min(1.0, 2 * tail)

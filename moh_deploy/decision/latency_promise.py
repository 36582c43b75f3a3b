"""Judge whether an alternative is enough faster, from rounds in which all alternatives ran in turn.

Rounds that follow each other are alike: the clock rate drifts, another process runs for a second.
So rounds are cut into blocks, and it is the blocks that are compared: each gives one ratio of the
alternative's quantile to the reference's, and what disturbed both cancels in it. Of their
logarithms, which are about normal, the mean has an interval by Student's t.

Blocks that are still like their neighbours say less than their number: the variance of the mean is
raised by their correlation.

Source: Schmeiser, Batch size effects in the analysis of simulation output (1982): few blocks, 10 to
30, and large ones. The variance is that of a mean of numbers with correlated neighbours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from moh_deploy.decision.promise import Promise, upper_point, upper_tail
from moh_deploy.validate.accuracy.bootstrap import RESAMPLES
from moh_deploy.validate.reference.differences import Float64Array

_BLOCKS = 10
_LEAST_BLOCKS = 5
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class MeanOfBlocks:
    """A mean over blocks of rounds."""

    mean: float  # of the blocks' values
    standard_error: float  # of the mean
    blocks: int  # how many there are

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return where the true mean is, with this confidence."""
        half = self.standard_error * upper_point((1 - confidence) / 2, self.blocks - 1)
        return self.mean - half, self.mean + half

    def p_below(self, limit: float) -> float:
        """Return the probability of such a mean, or a lower one, were the true one the limit."""
        if not self.standard_error:
            return 0.0 if self.mean < limit else 1.0
        return upper_tail((limit - self.mean) / self.standard_error, self.blocks - 1)


def log_quantile(times: Sequence[float], quantile: float) -> MeanOfBlocks | None:
    """Return the logarithm of a quantile of one alternative's times; None of too few rounds."""
    return _of_blocks(np.asarray(times)[None], quantile)


def log_ratio(
    alternative: Sequence[float], reference: Sequence[float], quantile: float
) -> MeanOfBlocks | None:
    """Return the logarithm of the ratio of two quantiles; None of too few rounds.

    Args:
        alternative: Milliseconds, one a round.
        reference: The same of the reference, in the same rounds.
        quantile: 0.5 for the median.
    """
    return _of_blocks(np.stack([alternative, reference]), quantile)


def least_rounds(quantile: float) -> int:
    """Return how many rounds there have to be."""
    return _LEAST_BLOCKS * _rounds_of_block(quantile)


def latency_promise(
    alternative: Sequence[float],
    reference: Sequence[float],
    *,
    quantile: float,
    at_least: float,
    confidence: float,
    where: str,
) -> Promise:
    """Judge whether an alternative is faster than the reference by at least a share.

    Args:
        alternative: Milliseconds, one a round.
        reference: The same of the reference.
        quantile: What is compared.
        at_least: 0.1 for a tenth less time; below 0: so much slower it may be.
        confidence: Of the interval.
        where: At which sizes, in words.
    """
    share, at = f"{100 * at_least:g} %", f"p{100 * quantile:g}{where}"
    promise = f"at least {share} faster at {at}"
    if at_least < 0:
        promise = f"at most {100 * -at_least:g} % slower at {at}"
    found, rounds = log_ratio(alternative, reference, quantile), len(alternative)
    if found is None:
        few = f"{rounds} rounds are too few, at least {least_rounds(quantile)} are needed"
        return Promise(
            "latency", promise, few, math.nan, None, None, at_least, 1.0, 1.0, rounds, "rounds",
            math.nan, math.nan, few,
        )  # fmt: skip
    # A ratio below 1 is a gain: the ends change places.
    low, high = found.interval(confidence)
    gain, least, most = (1 - math.exp(value) for value in (found.mean, high, low))
    limit = math.log1p(-at_least)
    came = f"{100 * gain:.1f} % faster ({100 * least:.1f} to {100 * most:.1f} %)"
    if gain < 0:
        came = f"{-100 * gain:.1f} % slower ({-100 * most:.1f} to {-100 * least:.1f} %)"
    return Promise(
        kind="latency",
        text=promise,
        came=came,
        estimate=gain,
        low=least,
        high=most,
        limit=at_least,
        p_kept=found.p_below(limit),
        p_broken=1 - found.p_below(limit) if found.standard_error else float(found.mean < limit),
        count=rounds,
        unit="rounds",
        standard_error=found.standard_error,
        surplus=limit - found.mean,
    )


def _rounds_of_block(quantile: float) -> int:
    # A quantile of fewer would be the slowest, or the fastest, whatever that was.
    return max(_LEAST_ROUNDS, math.ceil(1 / min(quantile, 1 - quantile) - 1e-9))


def _of_blocks(times: Float64Array, quantile: float) -> MeanOfBlocks | None:
    """Return the mean over blocks of log quantile(times[0]), minus that of times[1] if there is."""
    blocks = min(_BLOCKS, times.shape[1] // _rounds_of_block(quantile))
    if blocks < _LEAST_BLOCKS:
        return None
    # Rounds stay in their order, so that neighbours are in one block.
    cut = np.array_split(times, blocks, axis=1)
    logs = np.log([np.quantile(array, quantile, axis=1) for array in cut])  # [blocks, 1 or 2]
    values = logs[:, 0] - (logs[:, 1] if logs.shape[1] == 2 else 0)
    variance = values.var(ddof=1) / blocks * (1 + 2 * _correlation(values))
    return MeanOfBlocks(float(values.mean()), float(np.sqrt(variance)), blocks)


def _correlation(values: Float64Array) -> float:
    """Return the correlation of numbers with the ones before, at least 0."""
    off = values - values.mean()
    square = float((off**2).sum())
    if not square:
        return 0.0
    # Of n independent numbers -1/n is to be expected, since their own mean is taken off.
    return max(0.0, float((off[1:] * off[:-1]).sum()) / square + 1 / len(values))


# Estimate mean times, which a machine is paid for, by a bootstrap of blocks of rounds.
#
# Rounds that follow each other are alike: another process runs for a second. So runs of
# neighbouring blocks are drawn, with the times of all alternatives at once: a disturbance of all
# alternatives cancels in a ratio.
#
# Source: Politis & Romano, A circular block-resampling procedure for stationary data (1992).

LEAST_BLOCKS = 15
"""Fewer blocks of rounds give no interval."""

MOST_MEAN_OVER_MEDIAN = 1.5
"""Other work has disturbed times whose mean is further above the median."""

_MOST_BLOCKS = 40
# Long runs keep what a disturbance of many rounds does to their means.
_RUNS = 5


def block_means(times: Sequence[float]) -> tuple[float, ...]:
    """Return the mean times of at most 40 blocks of rounds, in their order."""
    blocks = np.array_split(np.asarray(times), min(_MOST_BLOCKS, len(times)))
    return tuple(float(block.mean()) for block in blocks)


def redrawn_means(blocks: Float64Array, *, seed: int) -> Float64Array:
    """Return the mean times of alternatives as measured, and of runs of blocks drawn anew.

    Args:
        blocks: Mean times of blocks of the same rounds, [blocks, alternatives].
        seed: Of the draws.

    Returns:
        [1 + draws, alternatives].
    """
    count, length = len(blocks), _blocks_of_run(len(blocks))
    # The first block follows the last one, so that each is in as many runs. [blocks, alternatives]
    runs = np.mean([np.roll(blocks, -offset, axis=0) for offset in range(length)], axis=0)
    rng = np.random.default_rng(seed)
    drawn = runs[rng.integers(count, size=(RESAMPLES, count // length))].mean(axis=1)
    return np.concatenate([blocks.mean(axis=0)[None], drawn])


def tail_of(blocks: int, confidence: float) -> float:
    """Return the share of draws beyond each end of an interval.

    Means of a few runs vary less in draws than in truth. The percentiles are further out for that.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap (2015): the expanded
    percentile interval.
    """
    runs = blocks // _blocks_of_run(blocks)
    point = upper_point((1 - confidence) / 2, runs - 1) * math.sqrt(runs / (runs - 1))
    return NormalDist().cdf(-point)


def _blocks_of_run(blocks: int) -> int:
    return blocks // _RUNS

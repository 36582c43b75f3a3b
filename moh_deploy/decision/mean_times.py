"""Estimate mean times, which a machine is paid for, by a bootstrap of blocks of rounds.

Rounds that follow each other are alike: another process runs for a second. So runs of neighbouring
blocks are drawn, with the times of all arms at once: a disturbance of all arms cancels in a ratio.

Source: Politis & Romano, A circular block-resampling procedure for stationary data (1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from moh_deploy.decision.promise import upper_point
from moh_deploy.validate.accuracy.bootstrap import RESAMPLES
from moh_deploy.validate.reference.differences import Float64Array

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
    """Return the mean times of arms as measured, and of runs of blocks drawn anew.

    Args:
        blocks: Mean times of blocks of the same rounds, [blocks, arms].
        seed: Of the draws.

    Returns:
        [1 + draws, arms].
    """
    count, length = len(blocks), _blocks_of_run(len(blocks))
    # The first block follows the last one, so that each is in as many runs. [blocks, arms]
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

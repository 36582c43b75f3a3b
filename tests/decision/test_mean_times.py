"""Means of blocks, and draws of them; how often intervals hold is in tests/decision/cost."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from moh_deploy.decision.latency_promise import LEAST_BLOCKS, block_means, redrawn_means, tail_of


def test_blocks_are_neighbours_and_each_round_is_in_one():
    means = block_means(list(range(400)))
    assert means == tuple(4.5 + 10 * index for index in range(40))
    assert block_means([3.0, 1.0, 2.0]) == (3.0, 1.0, 2.0)


@pytest.mark.parametrize("count", [LEAST_BLOCKS, 40])
def test_draws_vary_as_runs_of_neighbours_do(count: int):
    rng = np.random.default_rng(0)
    walk = 10 + np.cumsum(rng.standard_normal(count))
    found = redrawn_means(np.stack([walk, 2 * walk], axis=1), seed=1)
    assert found[0] == pytest.approx([walk.mean(), 2 * walk.mean()])
    # The same runs are drawn for all arms.
    assert found[:, 1] == pytest.approx(2 * found[:, 0])
    length = count // 5
    runs = [np.roll(walk, -start)[:length].mean() for start in range(count)]
    expected = np.std(runs) / np.sqrt(count // length)
    assert found[1:, 0].std() == pytest.approx(expected, rel=0.03)
    assert found[1:, 0].mean() == pytest.approx(walk.mean(), abs=4 * expected / 100)


def test_tail_is_that_of_students_t_for_five_runs():
    # 2.7764 is of a table, for four degrees of freedom; the variance of five is 5/4 of that drawn.
    assert tail_of(40, 0.95) == pytest.approx(NormalDist().cdf(-2.7764 * 1.25**0.5), rel=1e-3)
    assert tail_of(40, 0.8) > tail_of(40, 0.95)

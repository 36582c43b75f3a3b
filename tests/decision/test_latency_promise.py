"""Gains told from rounds of which neighbours are alike."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from moh_deploy.decision.latency_promise import (
    LEAST_BLOCKS,
    block_means,
    latency_promise,
    log_quantile,
    log_ratio,
    redrawn_means,
    tail_of,
)
from moh_deploy.decision.promise import Promise, upper_point, upper_tail
from tests.decision.simulated import REFERENCE, times
from tests.nightly import nightly


def promised(alternative: list[float], reference: list[float], **changes: float) -> Promise:
    options = {"quantile": 0.5, "at_least": 0.1, "confidence": 0.95, **changes}
    return latency_promise(alternative, reference, where="", **options)


def test_gain_is_the_share_of_the_references_time_that_is_saved():
    rng = np.random.default_rng(0)
    reference = 10 + rng.random(200)
    found = promised((0.8 * reference).tolist(), reference.tolist())
    assert found.estimate == pytest.approx(0.2)
    assert found.came.startswith("20.0 % faster (20.0 to 20.0 %)")
    assert (found.p_kept, found.p_broken) == (0.0, 1.0)


def test_drift_that_both_share_cancels():
    drift = np.linspace(10, 30, 200)
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal((2, 200))
    found = promised((0.8 * drift * noise[0]).tolist(), (drift * noise[1]).tolist())
    assert found.low is not None
    assert found.low > 0.19
    assert log_quantile(drift.tolist(), 0.5).standard_error > 10 * found.standard_error


def test_slower_alternative_is_called_so_and_a_negative_gain_allows_it():
    reference = (10 + np.random.default_rng(0).random(200)).tolist()
    slower = [1.03 * item for item in reference]
    assert promised(slower, reference).came.startswith("3.0 % slower")
    allowed = promised(slower, reference, at_least=-0.05)
    assert allowed.text == "at most 5 % slower at p50"
    assert allowed.p_kept < 0.025


@pytest.mark.parametrize(("quantile", "least"), [(0.5, 15), (0.9, 50), (0.99, 500)])
def test_too_few_rounds_tell_nothing_and_say_how_many_are_needed(quantile: float, least: int):
    few = [1.0] * (least - 1)
    found = promised(few, few, quantile=quantile)
    assert found.why_unknown == f"{least - 1} rounds are too few, at least {least} are needed"
    assert (found.p_kept, found.p_broken, found.low) == (1.0, 1.0, None)
    assert log_ratio([1.0] * least, [1.0] * least, quantile) is not None


def test_rounds_of_which_neighbours_are_alike_say_less():
    alike = times(np.random.default_rng(3), [0.1], memory=0.95).wall_ms
    order = np.random.default_rng(0).permutation(len(alike["0"]))
    shuffled = {name: np.asarray(item)[order].tolist() for name, item in alike.items()}
    errors = [
        promised(list(item["0"]), list(item[REFERENCE])).standard_error
        for item in (alike, shuffled)
    ]
    assert errors[0] > 2 * errors[1]


@nightly
@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_interval_holds_the_truth_as_often_as_it_says(memory: float):
    held = 0
    for seed in range(1000):
        wall = times(np.random.default_rng(seed), [0.2], rounds=300, memory=memory).wall_ms
        found = promised(list(wall["0"]), list(wall[REFERENCE]))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.2 <= found.high
    assert held >= 930


def test_enough_rounds_are_those_that_bring_the_error_below_the_gap():
    wall = times(np.random.default_rng(0), [0.11]).wall_ms
    found = promised(list(wall["0"]), list(wall[REFERENCE]))
    enough = found.enough(0.025)
    assert enough is not None
    gap = abs(found.surplus) / found.standard_error
    exact = found.count * ((1.96 + 0.84) / gap) ** 2
    assert exact <= enough <= 1.15 * exact


def test_students_t_is_that_of_tables():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 20: 2.086}
    for freedom, point in table.items():
        assert upper_point(0.025, freedom) == pytest.approx(point, abs=6e-4)
        assert upper_tail(point, freedom) == pytest.approx(0.025, rel=1e-3)
        assert upper_tail(-point, freedom) == pytest.approx(0.975, rel=1e-3)
    assert upper_tail(math.sqrt(3) * math.tan(0), 5) == 0.5


def test_blocks_that_are_like_their_neighbours_widen_the_interval():
    drift = np.exp(np.repeat(np.linspace(-0.1, 0.1, 10), 20))  # of one alternative alone
    found = log_ratio((10 * drift).tolist(), [10.0] * 200, 0.5)
    alone = np.linspace(-0.1, 0.1, 10).std(ddof=1) / math.sqrt(10)
    # Numbers on a line are correlated by 0.7, and 0.1 is what their own mean takes off.
    assert found.standard_error == pytest.approx(alone * math.sqrt(1 + 2 * 0.8), rel=0.01)
    turned = np.exp(0.1 * np.repeat(np.tile([1.0, -1.0], 5), 20))
    found = log_ratio((10 * turned).tolist(), [10.0] * 200, 0.5)
    assert found.standard_error == pytest.approx(0.1 * math.sqrt(10 / 9) / math.sqrt(10))


# Means of blocks, and draws of them; how often intervals hold is in tests/decision/cost.


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
    # The same runs are drawn for all alternatives.
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

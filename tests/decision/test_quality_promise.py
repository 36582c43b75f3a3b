"""Losses of quality, sample by sample."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moh_deploy.decision.promise import Promise
from moh_deploy.decision.quality_promise import SampleScores, quality_promise
from moh_deploy.validate.accuracy.choose import Perplexity, TopK


def promised(scores: SampleScores, may_lose: float = 0.01) -> Promise:
    return quality_promise(scores, "arm", "reference", may_lose=may_lose, confidence=0.95)


def top_1(reference: np.ndarray, arm: np.ndarray) -> SampleScores:
    totals = {"reference": reference.astype(np.float64), "arm": arm.astype(np.float64)}
    return SampleScores(TopK(1, "y"), np.ones(len(arm)), totals)


def test_equal_answers_of_many_samples_are_shown_to_lose_nothing():
    right = np.arange(2000) % 10 > 0
    found = promised(top_1(right, right))
    assert (found.estimate, found.p_kept < 0.001) == (0.0, True)
    assert found.came == "90.00 % to 90.00 %: loss 0.00 points (-0.15 to 0.15 points)"


def test_equal_answers_of_few_samples_are_not():
    right = np.ones(100)
    found = promised(top_1(right, right))
    assert found.p_kept > 0.025
    enough = found.enough(0.025)
    assert enough is not None
    assert enough > 100


def test_fewer_samples_than_a_bootstrap_needs_show_nothing_kept():
    found = promised(top_1(np.ones(29), np.ones(29)), may_lose=0.5)
    assert found.p_kept == 1.0
    assert found.why_unknown is not None
    assert found.why_unknown.startswith("29 samples are too few")


def test_what_both_lose_cancels():
    rng = np.random.default_rng(0)
    right = rng.random(4000) < 0.5
    same, other = promised(top_1(right, right)), promised(top_1(right, rng.permutation(right)))
    assert same.standard_error < 0.1 * other.standard_error


def test_lower_is_better_of_perplexity():
    rng = np.random.default_rng(0)
    losses = 2 + rng.random(400)
    totals = {"reference": 10 * losses, "arm": 10 * (losses + 0.1)}
    scores = SampleScores(Perplexity("y"), np.full(400, 10.0), totals)
    found = promised(scores, may_lose=0.1)
    expected = math.exp(losses.mean() + 0.1) - math.exp(losses.mean())
    assert found.estimate == pytest.approx(expected)
    assert found.p_broken < 0.025
    assert promised(scores, may_lose=3.0).p_kept < 0.025


def test_sample_without_a_score_loses_if_it_is_the_arms():
    broken = np.ones(100)
    broken[3] = np.nan
    found = promised(top_1(np.ones(100), broken))
    assert (found.p_kept, found.p_broken) == (1.0, 0.0)
    assert found.came == "1 of 100 samples have no finite top-1 in 'arm'"
    other = promised(top_1(broken, np.ones(100)))
    assert (other.p_kept, other.p_broken) == (1.0, 1.0)


def test_arm_without_a_score_changes_nothing_of_another():
    right = np.ones(100)
    broken = right.copy()
    broken[3] = np.nan
    totals = {"reference": right, "arm": right, "half": broken}
    scores = SampleScores(TopK(1, "y"), right, totals)
    assert promised(scores) == promised(top_1(right, right))
    low, high = scores.interval("arm", 0.95) or (1.0, 1.0)
    assert low < high

"""Tokens are the likeliest, or drawn as their logits say."""

from __future__ import annotations

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.runtime.text.decoding import Sampling, choose_tokens

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05]))


def drawn(sampling: Sampling, count: int = 4000) -> np.ndarray:
    chosen = choose_tokens(np.tile(LOGITS, (count, 1)), sampling, np.random.default_rng(1))
    return np.bincount(chosen, minlength=4) / count


def test_greedy_takes_the_first_of_the_largest():
    logits = np.array([[0.0, 2.0, 2.0], [5.0, 1.0, 2.0]])
    assert choose_tokens(logits, Sampling(), np.random.default_rng(0)).tolist() == [1, 0]


def test_draws_are_as_likely_as_the_logits_say():
    assert drawn(Sampling(temperature=1.0)) == pytest.approx(np.exp(LOGITS), abs=0.03)


def test_temperature_sharpens():
    sharp = np.exp(LOGITS * 2)
    assert drawn(Sampling(temperature=0.5)) == pytest.approx(sharp / sharp.sum(), abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, 1), (0.5, 1), (0.51, 2), (0.9, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: int):
    chances = np.exp(LOGITS)
    chances[kept:] = 0
    expected = chances / chances.sum()
    assert drawn(Sampling(temperature=1.0, top_p=top_p)) == pytest.approx(expected, abs=0.03)


def test_a_very_low_temperature_takes_the_likeliest():
    assert drawn(Sampling(temperature=1e-308), 8).tolist() == [1, 0, 0, 0]


def test_a_seed_that_no_generator_takes_is_refused():
    with pytest.raises(ConfigError, match="seed is -1, expected 0 or more"):
        Sampling(seed=-1)

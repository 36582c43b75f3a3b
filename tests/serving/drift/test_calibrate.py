"""Limits keep the rate of false alarms that they were calibrated to."""

from __future__ import annotations

import numpy as np
import pytest

from moh_deploy.serving.drift.distances import distances, limits
from moh_deploy.serving.telemetry.routing import Counts
from tests.nightly import nightly
from tests.serving.drift.traffic import LAYOUT, TOKENS, requests

WINDOW, RATE = 64, 0.01
TRAFFIC = requests(20_000, seed=1)


def false_alarms(reference: Counts, far: Counts, windows: int, seed: int = 3) -> int:
    """Count windows of the same traffic that alarm."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(TRAFFIC), size=(windows, WINDOW))
    totals = TRAFFIC[chosen].sum(axis=1)
    return int((distances(LAYOUT, totals, reference.sum(axis=0)) > far).any(axis=1).sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unchanged_traffic_alarms_no_more_often_than_stated(seed: int):
    reference = requests(400, seed=10 + seed)
    far = limits(LAYOUT, reference, WINDOW, rate=RATE, seed=seed)
    # 20 are expected of 2000 at the rate itself; 33 have a probability of 0.3 %.
    assert false_alarms(reference, far, 2000) <= 33


@nightly
def test_of_many_references_nearly_all_keep_the_rate():
    kept = 0
    for seed in range(40):
        reference = requests(400, seed=100 + seed)
        far = limits(LAYOUT, reference, WINDOW, rate=RATE, seed=seed)
        kept += false_alarms(reference, far, 4000) <= 4000 * RATE
    assert kept >= 36


@nightly
def test_tokens_that_are_taken_for_independent_alarm_far_too_often():
    """What whole requests are drawn for."""
    reference = requests(400, seed=10)
    # Single tokens, each with the mean of its request: drawn one by one they vary too little.
    tokens = np.repeat(reference, TOKENS, axis=0) / TOKENS
    far = limits(LAYOUT, tokens, WINDOW * TOKENS, rate=RATE, seed=0)
    assert false_alarms(reference, far, 2000) > 200


def test_requests_that_are_all_alike_leave_room_for_what_is_rounded():
    far = limits(LAYOUT, np.repeat(TRAFFIC[:1], 200, axis=0), WINDOW, rate=RATE, seed=0)
    assert (far > 1e-6).all()


def test_larger_windows_have_narrower_limits():
    reference = requests(400, seed=10)
    narrow = limits(LAYOUT, reference, 4 * WINDOW, rate=RATE, seed=0)
    wide = limits(LAYOUT, reference, WINDOW, rate=RATE, seed=0)
    assert (narrow < wide).all()


def test_equal_seeds_give_equal_limits():
    reference = requests(200, seed=10)
    found = [limits(LAYOUT, reference, WINDOW, rate=RATE, seed=4) for _ in range(2)]
    np.testing.assert_array_equal(*found)

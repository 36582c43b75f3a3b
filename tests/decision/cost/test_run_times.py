"""Intervals of mean times: how often do they hold the truth, on rounds of a machine that is busy?

The truth is the mean of all rounds of a recording; a look has a part of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest

from moh_deploy.decision.cost import price_arms
from moh_deploy.decision.cost.price_arms import Place, request_times
from moh_deploy.decision.cost.prices import Estimate
from moh_deploy.decision.cost.traffic import SizedRequests
from moh_deploy.decision.latency_promise import MOST_MEAN_OVER_MEDIAN
from moh_deploy.errors import ConfigError
from moh_deploy.validate.reference.differences import Float64Array
from tests.decision.cost.recorded import ARMS, decided, recordings
from tests.nightly import nightly

_ROUNDS = 250
_REQUESTS = [SizedRequests({"batch": 1}, 1.0)]
_PLACES = [Place((0,), (1.0,))]


def parts(recorded: Float64Array, count: int) -> Iterator[Float64Array]:
    """Yield rounds as a look would have timed them at that time."""
    for start in np.linspace(0, recorded.shape[1] - _ROUNDS, count).astype(int):
        yield recorded[:, start : start + _ROUNDS]


def drawn_parts(recorded: Float64Array, count: int) -> Iterator[Float64Array]:
    """Yield ten rounds of one time behind ten of another: the load does not change for long."""
    rng, length = np.random.default_rng(0), recorded.shape[1]
    for _ in range(count):
        starts = rng.integers(length, size=_ROUNDS // 10)
        yield recorded[:, ((starts[:, None] + np.arange(10)) % length).ravel()]


def is_disturbed(rounds: Float64Array) -> bool:
    ratios = rounds.mean(axis=1) / np.median(rounds, axis=1)
    return bool(ratios.max() > MOST_MEAN_OVER_MEDIAN)


def coverage(looks: list[tuple[Float64Array, Float64Array]]) -> dict[str, float]:
    """Return how often intervals hold the truth, for recordings and looks at them."""
    held: Counter[str] = Counter()
    for recorded, rounds in looks:
        reference, *truths = recorded.mean(axis=1)
        arms = request_times(decided(rounds), _REQUESTS, _PLACES)[1:]
        for arm, truth in zip(arms, truths, strict=True):
            assert arm.saved_ms is not None
            assert arm.by_size[0].gain is not None
            held["share"] += _holds(arm.by_size[0].gain, 1 - truth / reference)
            held["saved"] += _holds(arm.saved_ms, reference - truth)
            held["mean"] += _holds(arm.ms, truth)
    return {name: count / len(looks) / (len(ARMS) - 1) for name, count in held.items()}


def _holds(found: Estimate, truth: float) -> bool:
    return found.low <= truth <= found.high


@pytest.fixture
def nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_arms, "MOST_MEAN_OVER_MEDIAN", math.inf)


@nightly
def test_saving_of_a_look_holds_at_other_times_as_often_as_it_says(nothing_is_refused: None):
    looks = [(one, part) for one in recordings().values() for part in parts(one, 20)]
    found = coverage(looks)
    assert 0.93 <= found["share"] <= 0.97
    assert 0.93 <= found["saved"] <= 0.97
    # No look knows how busy the machine is at other times.
    assert found["mean"] >= 0.85
    # `cost` prices these, and refuses the others.
    priced = [look for look in looks if not is_disturbed(look[1])]
    assert (len(priced), len(looks)) == (66, 280)
    assert coverage(priced)["share"] >= 0.93


@nightly
def test_intervals_hold_the_truth_as_often_as_they_say_while_the_load_stays(
    nothing_is_refused: None,
):
    looks = [(one, part) for one in recordings().values() for part in drawn_parts(one, 20)]
    for name, share in coverage(looks).items():
        assert 0.93 <= share <= 0.97, name


def test_intervals_hold_the_truth_in_most_of_a_few_looks(nothing_is_refused: None):
    looks = [(one, part) for one in recordings().values() for part in drawn_parts(one, 2)]
    assert min(coverage(looks).values()) >= 0.85


def test_times_that_other_work_disturbed_are_refused_and_others_are_not():
    for recorded in recordings().values():
        (rounds,) = parts(recorded, 1)
        expected = (
            pytest.raises(ConfigError, match=r"times its median, expected at most 1\.5")
            if is_disturbed(rounds)
            else nullcontext()
        )
        with expected:
            request_times(decided(rounds), _REQUESTS, _PLACES)

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.serving.guard.breaker import Breaker, BreakerLimits

LIMITS = BreakerLimits(cool_down_s=10, back_off=3, longest_cool_down_s=50, stable_s=100, probes=2)


def opened_and_closed(breaker: Breaker, now: float) -> float:
    """Open it, and close it as soon as may be; return when."""
    closes = now + breaker.open(now)
    assert breaker.tick(closes)
    assert not breaker.probed(closes)
    assert breaker.probed(closes)
    return closes


def test_faults_count_within_the_window_only():
    breaker = Breaker(BreakerLimits(faults=3, window_s=10))
    assert [breaker.failed(now) for now in (0, 6, 12)] == [False, False, False]
    assert breaker.failed(14)


def test_cool_down_grows_with_each_opening_up_to_the_longest():
    breaker, now, waited = Breaker(LIMITS), 0.0, []
    for _ in range(4):
        waited.append(breaker.open(now))
        now = breaker.open_until
        breaker.tick(now)
        breaker.close(now)
    assert waited == [10, 30, 50, 50]


def test_cool_down_is_as_short_as_at_first_after_a_stable_time():
    breaker = Breaker(LIMITS)
    closed = opened_and_closed(breaker, 0)
    assert breaker.open(closed + 99) == 30
    breaker.tick(1000)
    breaker.close(1000)
    assert breaker.open(1100) == 10


def test_a_failed_probe_cools_down_longer_whatever_the_time():
    breaker = Breaker(LIMITS)
    breaker.open(0)
    breaker.tick(1000)
    assert breaker.open(1000) == 30


def test_half_open_comes_with_the_end_of_the_cool_down_and_not_before():
    breaker = Breaker(LIMITS)
    breaker.open(5)
    assert not breaker.tick(14.9)
    assert breaker.state == "open"
    assert breaker.tick(15)
    assert breaker.state == "half-open"


def test_too_few_runs_say_nothing_of_their_times():
    breaker = Breaker(BreakerLimits(p99_ms=10, min_samples=50))
    assert [breaker.took(0, 1.0) for _ in range(50)] == [False] * 49 + [True]


def test_no_limit_no_time_opens():
    breaker = Breaker(BreakerLimits(min_samples=1))
    assert not any(breaker.took(0, 100.0) for _ in range(500))
    assert breaker.p99_ms is None


@pytest.mark.parametrize(("seconds", "is_slow"), [(0.008, False), (0.0081, True)])
def test_a_probe_has_to_be_faster_than_what_opens(seconds, is_slow):
    assert Breaker(BreakerLimits(p99_ms=10, recover_share=0.8)).is_slow(seconds) == is_slow


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 30)), min_size=1, max_size=300))
def test_the_counted_percentile_is_that_of_sorted_times(runs):
    breaker, now, kept = (
        Breaker(BreakerLimits(p99_ms=15, min_samples=20, latency_window_s=60)),
        0.0,
        [],
    )
    for wait, time_ms in runs:
        now += wait
        kept = [one for one in [*kept, (now, time_ms)] if one[0] >= now - 60]
        is_slow = breaker.took(now, time_ms / 1e3)
        p99 = sorted(time for _, time in kept)[math.ceil(0.99 * len(kept)) - 1]
        assert is_slow == (len(kept) >= 20 and p99 > 15)
        assert breaker.p99_ms == pytest.approx(p99)


def test_the_window_of_a_busy_server_is_bounded():
    breaker = Breaker(BreakerLimits(p99_ms=10, min_samples=1))
    for time in np.full(10_500, 0.02):
        breaker.took(0, time)
    assert breaker.runs == 10_000
    assert not any([breaker.took(0, 0.001) for _ in range(10_000)][-100:])

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.serving.guard.answer_check import LatencyWindow
from moh_deploy.serving.guard.policy import LatencySection


def window(limit_ms: float | None = 10.0, **rule: float) -> LatencyWindow:
    return LatencyWindow(limit_ms, LatencySection(**rule))


def test_too_few_runs_say_nothing_of_their_times():
    runs = window(min_samples=50)
    assert [runs.add(0, 1.0) for _ in range(50)] == [False] * 49 + [True]


def test_without_a_limit_no_time_is_too_long():
    runs = window(None, min_samples=1)
    assert not any(runs.add(0, 100.0) for _ in range(500))


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 30)), min_size=1, max_size=300))
def test_the_counted_percentile_is_that_of_sorted_times(runs):
    window_of_runs, now, kept = window(15.0, min_samples=20, window_s=60.0), 0.0, []
    for wait, time_ms in runs:
        now += wait
        kept = [run for run in [*kept, (now, time_ms)] if run[0] >= now - 60]
        is_slow = window_of_runs.add(now, time_ms / 1e3)
        p99 = sorted(time for _, time in kept)[math.ceil(0.99 * len(kept)) - 1]
        assert is_slow == (len(kept) >= 20 and p99 > 15)
        figures = {"p99_ms": pytest.approx(p99), "limit_ms": 15, "runs": len(kept)}
        assert window_of_runs.figures() == figures


def test_the_window_of_a_busy_server_is_bounded():
    runs = window(min_samples=1)
    for time in np.full(10_500, 0.02):
        runs.add(0, time)
    assert runs.figures()["runs"] == 10_000
    assert not any([runs.add(0, 0.001) for _ in range(10_000)][-100:])


def test_a_cleared_window_has_no_slow_runs():
    runs = window(min_samples=1)
    assert runs.add(0, 1.0)
    runs.clear()
    assert not runs.add(0, 0.001)

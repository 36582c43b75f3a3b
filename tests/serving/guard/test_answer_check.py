import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moh_deploy.package import VectorSet
from moh_deploy.serving.guard.answer_check import (
    AnswerCheck,
    LatencyWindow,
    WrongSamples,
    all_finite,
    is_finite,
)
from moh_deploy.serving.guard.policy import LatencySection
from moh_deploy.system.npz import Array


def values(*rows: float, dtype: str = "float32") -> Array:
    """Return [B, 1]."""
    return np.array(rows, dtype)[:, None]


def check(*recorded: VectorSet, has_samples: bool = True) -> AnswerCheck:
    return AnswerCheck(["y"], ["gates"], recorded, has_samples)


def recorded(x: Array, y: Array) -> VectorSet:
    return VectorSet({}, {"x": x}, {"y": y}, (values(1, 1),), (values(1, 1),))


NAN, INF = np.nan, np.inf
OUTPUTS, GATES = "non-finite outputs", "non-finite gates"


@pytest.mark.parametrize(
    ("x", "y", "gates", "expected"),
    [
        (values(1, 2), values(1, 2), values(0, 1), None),
        (values(1, 2, 3), values(NAN, 2, INF), None, (OUTPUTS, "y", (0, 2))),
        (values(1, 2), values(1, 2), values(1, NAN), (GATES, "gates", (1,))),
        # Samples whose inputs are not finite are not judged.
        (values(INF, 2), values(NAN, 2), None, None),
        (values(INF, 2), values(NAN, NAN), None, (OUTPUTS, "y", (1,))),
        # Gates that are not of samples concern all of them, and are judged if all are.
        (values(1, 2), values(1, 2), values(1, 1, NAN), (GATES, "gates", (0, 1))),
        (values(NAN, 2), values(NAN, 2), values(1, 1, NAN), None),
        (values(NAN, 2), values(NAN, INF), values(1, 1, NAN), (OUTPUTS, "y", (1,))),
    ],
)
def test_samples_with_finite_inputs_and_an_answer_that_is_not_are_wrong(
    x: Array, y: Array, gates: Array | None, expected: tuple[str, str, tuple[int, ...]] | None
):
    results = {"y": y} if gates is None else {"y": y, "gates": gates}
    found = check().wrong({"x": x}, results)
    assert found == (None if expected is None else WrongSamples(*expected))


def test_without_samples_a_call_is_judged_as_a_whole():
    whole = check(has_samples=False)
    assert whole.wrong({"x": values(INF, 2)}, {"y": values(1, NAN)}) is None
    found = whole.wrong({"x": values(1, 2)}, {"y": values(1, 2, NAN)})
    assert found == WrongSamples(OUTPUTS, "y", (0,))


def test_kinds_of_values_in_recorded_runs_are_usual():
    masked = check(recorded(values(0, -INF), values(-INF, 1)))
    inputs = {"x": values(-INF, 0)}
    assert masked.wrong(inputs, {"y": values(-INF, -INF)}) is None
    assert masked.wrong(inputs, {"y": values(-INF, INF)}) == WrongSamples(OUTPUTS, "y", (1,))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_every_float_is_looked_at(dtype: str):
    array = np.array([1, 2, np.nan], dtype)
    assert not is_finite(array)
    assert is_finite(array[:2])
    wrong = check().wrong({"x": values(1, 2, 3)}, {"y": array[:, None]})
    assert wrong == WrongSamples("non-finite outputs", "y", (2,))


def test_what_is_no_float_is_finite():
    assert is_finite(np.array([1, 2]))
    assert is_finite(np.array([True]))


@given(
    st.lists(
        hnp.arrays(
            st.sampled_from(["float32", "float64", "float16", "int32"]),
            st.integers(0, 40),
        ),
        max_size=3,
    )
)
def test_sums_tell_what_elements_tell(arrays: list[Array]):
    assert all_finite(arrays) == all(np.isfinite(array).all() for array in arrays)


def test_sums_that_overflow_are_looked_at_again():
    large = np.full(10, 3e38, np.float32)
    assert all_finite([large])
    assert not all_finite([large, np.array([np.nan], np.float32)])


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

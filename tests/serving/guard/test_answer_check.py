from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moh_deploy.package import VectorSet
from moh_deploy.serving.guard.answer_check import AnswerCheck, WrongSamples, all_finite, is_finite
from moh_deploy.system.npz import Array


def values(*rows: float, dtype: str = "float32") -> Array:
    """Return [B, 1]."""
    return np.array(rows, dtype)[:, None]


def check(*recorded: VectorSet, has_samples: bool = True) -> AnswerCheck:
    return AnswerCheck(["y"], ["gates"], recorded, has_samples)


def recorded(x: Array, y: Array) -> VectorSet:
    return VectorSet({}, {"x": x}, {"y": y}, (values(1, 1),), (values(1, 1),))


def test_finite_answers_are_not_wrong():
    assert check().wrong({"x": values(1, 2)}, {"y": values(1, 2), "gates": values(0, 1)}) is None


def test_each_sample_that_is_not_finite_is_named():
    found = check().wrong({"x": values(1, 2, 3)}, {"y": values(np.nan, 2, np.inf)})
    assert found == WrongSamples("non-finite outputs", "y", (0, 2))


def test_gates_are_judged_too():
    found = check().wrong({"x": values(1, 2)}, {"y": values(1, 2), "gates": values(1, np.nan)})
    assert found == WrongSamples("non-finite gates", "gates", (1,))


def test_samples_whose_inputs_are_not_finite_are_not_judged():
    inputs = {"x": values(np.inf, 2)}
    assert check().wrong(inputs, {"y": values(np.nan, 2)}) is None
    found = check().wrong(inputs, {"y": values(np.nan, np.nan)})
    assert found == WrongSamples("non-finite outputs", "y", (1,))


def test_without_samples_a_call_is_judged_as_a_whole():
    whole = check(has_samples=False)
    assert whole.wrong({"x": values(np.inf, 2)}, {"y": values(1, np.nan)}) is None
    assert whole.wrong({"x": values(1, 2)}, {"y": values(1, 2, np.nan)}) == WrongSamples(
        "non-finite outputs", "y", (0,)
    )


def test_kinds_of_values_in_recorded_runs_are_usual():
    masked = check(recorded(values(0, -np.inf), values(-np.inf, 1)))
    inputs = {"x": values(-np.inf, 0)}
    assert masked.wrong(inputs, {"y": values(-np.inf, -np.inf)}) is None
    found = masked.wrong(inputs, {"y": values(-np.inf, np.inf)})
    assert found == WrongSamples("non-finite outputs", "y", (1,))


def test_gates_that_are_not_of_samples_concern_all_of_them():
    found = check().wrong({"x": values(1, 2)}, {"y": values(1, 2), "gates": values(1, 1, np.nan)})
    assert found == WrongSamples("non-finite gates", "gates", (0, 1))


def test_gates_that_are_not_of_samples_are_not_judged_beside_inputs_that_are_not_finite():
    inputs, gates = {"x": values(np.nan, 2)}, values(1, 1, np.nan)
    assert check().wrong(inputs, {"y": values(np.nan, 2), "gates": gates}) is None
    found = check().wrong(inputs, {"y": values(np.nan, np.inf), "gates": gates})
    assert found == WrongSamples("non-finite outputs", "y", (1,))


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
    assert all_finite(arrays) == all(np.isfinite(one).all() for one in arrays)


def test_sums_that_overflow_are_looked_at_again():
    large = np.full(10, 3e38, np.float32)
    assert all_finite([large])
    assert not all_finite([large, np.array([np.nan], np.float32)])

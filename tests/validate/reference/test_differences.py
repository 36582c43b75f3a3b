import math

import ml_dtypes
import numpy as np
import pytest

from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.differences import (
    abs_error,
    describe_worst,
    largest,
    largest_finite,
    worst,
    worst_index,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("got", "reference", "expected"),
    [
        (1.0, 1.0, 0.0),
        (1.0, 1.5, 0.5),
        (INF, INF, 0.0),
        (-INF, INF, INF),
        (INF, 3e38, INF),
        (1.0, -INF, INF),
        (NAN, NAN, NAN),
        (NAN, 1.0, NAN),
        (INF, NAN, NAN),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_error_of_one_element(dtype: type, got: float, reference: float, expected: float):
    error = largest(abs_error(np.array([got], dtype), np.array([reference], dtype)))
    assert error == expected or (math.isnan(error) and math.isnan(expected))


@pytest.mark.parametrize(
    ("got", "reference"),
    [
        (np.array([2**62 + 1]), np.array([2**62])),
        (np.array([True]), np.array([False])),
        (np.array([255], np.uint8), np.array([0], np.uint8)),
    ],
)
def test_integers_that_differ_never_have_error_zero(got: Array, reference: Array):
    assert largest(abs_error(got, reference)) >= 1
    assert largest(abs_error(got, got)) == 0


def test_one_nan_among_many_numbers_decides():
    assert math.isnan(worst([1.0, NAN, 3.0]))
    assert math.isnan(worst([NAN, 1.0]))
    assert worst([]) == 0
    error = np.array([[1.0, 5.0], [NAN, 2.0]])
    assert math.isnan(largest(error))
    assert worst_index(error) == (1, 0)


def test_largest_of_nothing_is_0_and_leaves_out_what_is_not_finite():
    empty = np.zeros((0, 3), np.float32)
    assert largest(abs_error(empty, empty)) == largest_finite(empty) == 0
    assert largest_finite(np.array([NAN, -3.0, INF])) == 3.0
    assert largest_finite(np.array([NAN])) == 0.0


@pytest.mark.parametrize(
    ("got", "reference", "text"),
    [
        ([1.0, NAN], [1.0, 2.0], "differs by nan at [1]: got nan, reference 2, tolerance 0.0001."),
        ([1.0, 2.0], [1.0, NAN], "cannot be compared: the reference is itself NaN at [1], got 2."),
    ],
)
def test_sentence_shows_place_values_and_tolerance(
    got: list[float], reference: list[float], text: str
):
    arrays = np.array(got), np.array(reference)
    assert describe_worst("y", *arrays, abs_error(*arrays), 1e-4).startswith(f"y {text}")

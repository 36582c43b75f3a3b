from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from moh_deploy.perf.bench.measured import Agreement, agreement
from moh_deploy.system.npz import Array

Y = np.array([1.0, -2.0, 4.0], np.float32)


def compared(got: Array, expected: Array = Y, *precisions: str) -> Agreement:
    return agreement([got], {"y": expected}, precisions, inputs="recorded (batch=2)")


def test_rounding_is_no_difference_and_more_is():
    same = compared(Y + np.float32(1e-5))
    assert same.reason is None
    assert same.max_abs_error == pytest.approx(1e-5, rel=0.1)
    assert same.tolerance == pytest.approx(4e-4)
    differs = compared(Y + np.float32(1e-2))
    assert "output 'y' of vectors recorded (batch=2) differs by 0.01" in differs.reason


def test_what_computes_in_half_precision_may_differ_by_its_rule():
    half = Y + np.float32(1e-2)
    assert compared(half, Y, "float32", "float16").reason is None
    assert compared(Y.astype(ml_dtypes.bfloat16)).reason is None
    assert compared(Y, Y.astype(np.float16)).reason is None


def test_numbers_that_count_have_no_rounding():
    assert compared(np.array([1, 3]), np.array([1, 2]), "float16").reason is not None


def test_outputs_that_cannot_be_compared_differ():
    assert "of shape [2], the reference [3]" in compared(Y[:2]).reason
    assert "differs by" in compared(np.array([1.0, np.inf, 4.0], np.float32)).reason
    assert "nan" in compared(np.array([1.0, np.nan, 4.0], np.float32)).reason
    more = agreement([Y, Y], {"y": Y}, (), inputs="recorded")
    assert (more.reason, math.isnan(more.max_abs_error)) == ("it has 2 outputs, not 1.", True)


def test_model_without_outputs_agrees():
    assert agreement([], {}, (), inputs="recorded") == Agreement(0.0, None, None)


def test_worst_output_is_the_one_that_is_told():
    found = agreement([Y, Y + np.float32(1e-5)], {"a": Y, "b": Y}, ("float32",), inputs="recorded")
    assert found.max_abs_error > 0

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from moh_deploy.validate.bisection.divergence import (
    InnerValue,
    _compared,
    first_beyond,
    node_errors,
)
from moh_deploy.validate.bisection.places import ModelGraph

GRAPH = """
g (float[n] x) => (float[n] first, float[n] second)
{ shared = Neg(x)
  a = Abs(shared)
  first = Exp(a)
  b = Relu(shared)
  second = Exp(b) }
"""


def graph() -> ModelGraph:
    return ModelGraph(onnx.parser.parse_graph(GRAPH))


@pytest.mark.parametrize(
    ("got", "expected", "error", "finite"),
    [
        ([1.0, np.inf], [1.0, 7e4], np.inf, False),
        ([1.0, -np.inf], [1.0, -3.4e38], 0.0, True),  # a mask
        ([1.0, -np.inf], [1.0, -np.inf], 0.0, True),
        ([1.0, np.nan], [1.0, np.nan], 0.0, True),
        ([1.0, np.nan], [1.0, 2.0], np.inf, False),
        ([1.0, 2.5], [1.0, 2.0], 0.5, True),
        ([], [], 0.0, True),
    ],
)
def test_masks_are_equal_and_overflow_is_not(
    got: list[float], expected: list[float], error: float, finite: bool
):
    value = _compared("v", np.asarray(got, np.float32), np.asarray(expected, np.float32))
    assert (value.error, value.finite) == (error, finite)


def test_first_that_is_not_finite_comes_before_the_first_that_is_far_off():
    x = np.ones(2, np.float32)
    values = {
        "shared": _compared("shared", x, x),
        "a": _compared("a", x * 1.1, x),
        "first": _compared("first", x * 1.2, x),
        "b": _compared("b", x * np.inf, x),
    }
    errors = node_errors(graph(), values)
    found = first_beyond(errors, 0.05, range(5))
    assert found is not None
    assert found.place.value == "b"
    assert (found.before, found.behind, found.finite) == (0.0, math.inf, False)
    without = {index: one for index, one in errors.items() if one.finite}
    assert (first_beyond(without, 0.05, range(5)) or found).place.value == "a"
    assert first_beyond(without, 0.5, range(5)) is None
    assert first_beyond(errors, 0.05, range(1)) is None


def test_result_that_only_its_cast_has_by_a_shared_name_is_compared():
    text = "g (float[n] x) => (float[n] y) { low = Exp(x)  y = Cast <to = 1> (low) }"
    values = {"y": InnerValue("y", 0.5, 2.0, (3,), finite=True)}
    errors = node_errors(ModelGraph(onnx.parser.parse_graph(text)), values)
    assert {errors[index].place.value: errors[index].behind for index in errors} == {"low": 0.25}

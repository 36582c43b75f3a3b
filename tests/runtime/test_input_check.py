from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import CacheBuffer, CachesInPlace, TensorInfo
from moh_deploy.runtime.input_check import check_inputs, check_room
from moh_deploy.system.npz import Array

SPECS = (
    TensorInfo("x", "float32", ("batch", "seq", 8)),
    TensorInfo("mask", "bool", ("batch", "past + 1")),
    TensorInfo("past", "int64", ("batch", "past")),
)


def inputs(**changed: Array) -> dict[str, Array]:
    good: dict[str, Array] = {
        "x": np.zeros((2, 3, 8), np.float32),
        "mask": np.zeros((2, 6), np.bool_),
        "past": np.zeros((2, 5), np.int64),
    }
    return {**good, **changed}


def test_good_inputs_give_the_dimension_sizes():
    assert check_inputs(SPECS, inputs()) == {"batch": 2, "seq": 3, "past": 5}


def test_empty_axes_are_good():
    empty = {"mask": np.zeros((2, 1), np.bool_), "past": np.zeros((2, 0), np.int64)}
    assert check_inputs(SPECS, inputs(**empty))["past"] == 0


def test_dimension_that_is_no_linear_expression_must_agree_with_itself():
    specs = [TensorInfo(name, "int64", ("a*b",)) for name in "pq"]
    four, five = np.zeros(4, np.int64), np.zeros(5, np.int64)
    check_inputs(specs, {"p": four, "q": four})
    with pytest.raises(ConfigError, match="inconsistent"):
        check_inputs(specs, {"p": four, "q": five})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": np.zeros((2, 3, 8))}, r"'x' is float64\[2, 3, 8\], expected dtype float32"),
        ({"x": np.zeros((2, 3, 8), ">f4")}, r"'x' is >f4\[2, 3, 8\], expected dtype float32"),
        ({"x": np.zeros((2, 8), np.float32)}, r"with 2 axes, expected float32\[batch, seq, 8\]"),
        ({"x": np.zeros((2, 3, 9), np.float32)}, "axis 2 is fixed at 8, got 9"),
        (
            {"x": np.zeros((4, 3, 8), np.float32)},
            r"'batch' is inconsistent: 4 \('batch'\) on axis 0 of 'x', 2 \('batch'\) on axis 0 of",
        ),
        ({"mask": np.zeros((2, 5), np.bool_)}, r"'past' is inconsistent: 5 \('past \+ 1'\)"),
        ({"mask": np.zeros((2, 0), np.bool_)}, r"got size 0, which is 'past \+ 1' for no whole"),
        ({"y": np.zeros(1)}, "there is no input 'y': the model has 'x', 'mask', 'past'"),
    ],
)
def test_bad_input_is_refused_naming_input_got_and_expected(
    changed: dict[str, Array], message: str
):
    with pytest.raises(ConfigError, match=message):
        check_inputs(SPECS, inputs(**changed))


def test_missing_input_is_refused():
    given = inputs()
    del given["mask"]
    with pytest.raises(ConfigError, match="input 'mask' is missing: got 'x', 'past', expected"):
        check_inputs(SPECS, given)


def test_misspelt_input_gets_a_suggestion():
    with pytest.raises(ConfigError) as error:
        check_inputs(SPECS, inputs(masks=np.zeros(1)))
    assert error.value.hint == "Did you mean 'mask'?"


CACHES = CachesInPlace((CacheBuffer("past", "present", 2),), "total - seq", "seq", 1, 9)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"total": 8, "seq": 2, "buffer": 7},
            r"have 7 places \('past'\), of which 6 are filled: 2",
        ),
        ({"total": 10, "seq": 2, "buffer": 12}, "8 cached tokens and 2 more are 10.* at most 9"),
        ({"total": 2, "seq": 2, "buffer": 12}, "says that 0 tokens are cached, expected 1 or more"),
    ],
)
def test_tokens_need_room_in_caches(sizes: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        check_room(CACHES, sizes, {})


def test_last_place_of_a_cache_may_be_filled():
    check_room(CACHES, {"total": 9, "seq": 2, "buffer": 9}, {})


def test_filled_places_may_be_told_by_an_input():
    caches = replace(CACHES, past_length="told")
    check_room(caches, {"seq": 2, "buffer": 8}, {"told": np.asarray(6)})
    with pytest.raises(ConfigError, match="of which 7 are filled"):
        check_room(caches, {"seq": 2, "buffer": 8}, {"told": np.asarray(7)})


def test_numbers_beside_caches_that_tell_no_length_may_be_anything():
    check_room(CACHES, {"total": 9, "seq": 2, "buffer": 9}, {"scale": np.asarray(np.nan)})

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import parser

from moh_deploy.errors import ConfigError
from moh_deploy.package import CacheBuffer, CachesInPlace, TensorInfo
from moh_deploy.runtime.input_check import IndexCheck, InputCheck, check_inputs, check_room
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
    again = InputCheck(SPECS)
    assert [again.check(inputs(**empty))["past"] for _ in range(2)] == [0, 0]


def test_size_that_no_dimension_makes_is_refused_again():
    again = InputCheck([TensorInfo("pairs", "int64", ("2*n",))])
    assert again.check({"pairs": np.zeros(6, np.int64)}) == {"n": 3}
    with pytest.raises(ConfigError, match=r"'2\*n' for no whole"):
        again.check({"pairs": np.zeros(7, np.int64)})


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
    again = InputCheck(SPECS)
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            again.check(inputs(**changed))
        assert again.check(inputs()) == {"batch": 2, "seq": 3, "past": 5}


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
            r"have 7 places \('past'\), 6 of them filled: 2",
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
    with pytest.raises(ConfigError, match="7 of them filled"):
        check_room(caches, {"seq": 2, "buffer": 8}, {"told": np.asarray(7)})


def test_numbers_beside_caches_that_tell_no_length_may_be_anything():
    check_room(CACHES, {"total": 9, "seq": 2, "buffer": 9}, {"scale": np.asarray(np.nan)})


# Inputs that need rows which a table does not have are refused, as the original refuses them.


# Ids in a table of 10 rows, positions behind a cache in one of 8.
DECODER = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (int64[batch, seq] ids, float16[batch, past, 4] cache) => (float[batch, seq, c] y)
        <float[10, 1] tokens = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9},
         float[8, 1] positions = {0, 1, 2, 3, 4, 5, 6, 7},
         int64 zero = {0}, int64 one = {1}>
    {
        t = Gather (tokens, ids)
        past_shape = Shape <start = 1, end = 2> (cache) past = Squeeze (past_shape)
        ids_shape = Shape (ids) seq = Gather (ids_shape, one)
        total = Add (past, seq) all = Range (past, total, one)
        p = Gather (positions, all)
        y = Add (t, p)
    }"""
# Positions count the tokens that a mask leaves.
MASKED = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (int64[batch, seq] mask) => (float[batch, seq, c] y)
        <float[4, 1] positions = {0, 1, 2, 3}, int64 one = {1}>
    { counted = CumSum (mask, one) all = Sub (counted, one) y = Gather (positions, all) }"""


def check(text: str, *, from_the_end: bool = False) -> IndexCheck:
    return IndexCheck(parser.parse_model(text), from_the_end=from_the_end)


def tokens(ids: list[int], *, past: int = 0, dtype: str = "int64") -> dict[str, Array]:
    return {"ids": np.array([ids], dtype), "cache": np.zeros((1, past, 4), np.float16)}


def test_rows_that_are_there_are_taken():
    for ids in ([0, 9], [5] * 8, []):
        check(DECODER).check(tokens(ids))


@pytest.mark.parametrize(("wrong", "place"), [(-1, 2), (-10, 0), (10, 1), (-11, 0)])
def test_id_without_a_row_is_named_with_its_table(wrong: int, place: int):
    ids = [1, 1, 1]
    ids[place] = wrong
    words = f"input 'ids' is {wrong} at [0, {place}], expected 0 to 9: the model looks it up in"
    with pytest.raises(ConfigError) as refused:
        check(DECODER).check(tokens(ids))
    assert refused.value.message == f"{words} 'tokens', a table of 10 rows."


def test_negative_ids_count_from_the_end_where_onnx_is_the_original():
    checked = check(DECODER, from_the_end=True)
    checked.check(tokens([-1, -10]))
    with pytest.raises(ConfigError, match=r"'ids' is -11 at \[0, 0\], expected -10 to 9"):
        checked.check(tokens([-11]))


def test_sequence_beyond_a_table_of_positions_is_refused_with_its_name_and_size():
    checked = check(DECODER)
    checked.check(tokens([1], past=7))
    for _ in range(2):  # nothing is remembered of sizes that were refused
        with pytest.raises(ConfigError) as refused:
            checked.check(tokens([1, 1], past=7))
    message = refused.value.message
    assert message.startswith("the inputs need row 8 of 'positions', a table of 8 rows, expected 0")
    assert message.endswith("they are 'cache' [1, 7, 4], 'ids' [1, 2].")
    checked.check(tokens([1], past=7))


def test_positions_that_a_mask_tells_are_computed_from_it():
    mask = np.ones((1, 5), np.int64)
    with pytest.raises(ConfigError, match="need row 4 of 'positions', a table of 4 rows"):
        check(MASKED).check({"mask": mask})
    mask[0, 4] = 0
    check(MASKED).check({"mask": mask})
    with pytest.raises(ConfigError, match="need row -1 of 'positions'"):
        check(MASKED).check({"mask": 1 - mask})


def test_ids_of_any_whole_number_are_checked():
    proto = parser.parse_model(DECODER)
    for dtype in ("int32", "uint8", "int8"):
        kind = onnx.TensorProto.DataType.Value(dtype.upper())
        proto.graph.input[0].type.tensor_type.elem_type = kind
        checked = IndexCheck(proto, from_the_end=False)
        checked.check(tokens([9], dtype=dtype))
        with pytest.raises(ConfigError, match="'ids' is 10 at"):
            checked.check(tokens([10], dtype=dtype))


def test_sizes_that_do_not_fit_are_left_to_the_model():
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (int64[n] a, int64[n] b) => (float[n, c] y) <float[2, 1] table = {0, 1}>
        { i = Add (a, b) y = Gather (table, i) }"""
    check(text).check({"a": np.zeros(2, np.int64), "b": np.zeros(3, np.int64)})

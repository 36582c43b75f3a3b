from __future__ import annotations

import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import MOH_OUTPUT_PROJECTION, MOH_QUERY_PROJECTION, TensorType
from moh_deploy.ops.spec import OpDim

PROJECTIONS = [MOH_QUERY_PROJECTION, MOH_OUTPUT_PROJECTION]


def _float(*shape: OpDim) -> TensorType:
    return TensorType("float32", shape)


X, W, GATES, BIAS = (
    _float("batch", "seq", 12),
    _float(12, 15),
    _float("batch", "seq", 3),
    _float(15),
)


def _infer(spec, *inputs: TensorType | None, num_heads: int = 3) -> TensorType:
    return spec.shape_rule(inputs, spec.complete({"num_heads": num_heads}))[0]


@pytest.mark.parametrize("spec", PROJECTIONS, ids=lambda spec: spec.name)
def test_output_has_the_tokens_of_x_and_the_columns_of_the_weight(spec):
    assert _infer(spec, X, W, GATES, BIAS) == _float("batch", "seq", 15)
    assert _infer(spec, X, W, GATES) == _infer(spec, X, W, GATES, None)


@pytest.mark.parametrize("spec", PROJECTIONS, ids=lambda spec: spec.name)
def test_unknown_sizes_are_taken_from_the_other_inputs(spec):
    unknown = [_float(None, None, None), _float(None, None), _float(2, 7, None), _float(15)]
    assert _infer(spec, *unknown) == _float(2, 7, 15)


def test_heads_divide_the_columns_of_a_query_projection_and_the_rows_of_an_output_projection():
    assert _infer(MOH_QUERY_PROJECTION, _float(1, 2, 10), _float(10, 15), _float(1, 2, 3))
    assert _infer(MOH_OUTPUT_PROJECTION, _float(1, 2, 15), _float(15, 10), _float(1, 2, 3))
    with pytest.raises(ExportError, match="columns of W is 10; expected a multiple of its 3"):
        _infer(MOH_QUERY_PROJECTION, _float(1, 2, 15), _float(15, 10), _float(1, 2, 3))
    with pytest.raises(ExportError, match="rows of W is 10; expected a multiple of its 3"):
        _infer(MOH_OUTPUT_PROJECTION, _float(1, 2, 10), _float(10, 15), _float(1, 2, 3))


@pytest.mark.parametrize("spec", PROJECTIONS, ids=lambda spec: spec.name)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: None}, "input 'X' is absent"),
        ({1: None}, "input 'W' is absent"),
        ({2: None}, "input 'gates' is absent"),
        ({0: _float(5, 12)}, r"X has rank 2, shape \[5, 12\]; expected rank 3"),
        ({1: _float(1, 12, 15)}, "W has rank 3"),
        ({2: _float(7, 3)}, "gates has rank 2"),
        ({3: _float(1, 15)}, "bias has rank 2"),
        ({0: TensorType("int64", (2, 7, 12))}, "X has dtype int64; expected float32 or"),
        ({1: TensorType("float16", (12, 15))}, "W has dtype float16; expected float32"),
        ({2: TensorType("bool", (2, 7, 3))}, "gates has dtype bool; expected float32"),
        ({1: _float(13, 15)}, "number of rows of W is 13; expected 12|rows of W is 13; expected a"),
        ({2: _float("batch", "seq", 4)}, "number of heads in gates is 4; expected 3"),
        ({3: _float(14)}, "size of bias is 14; expected 15"),
        ({0: _float(2, 7, 12), 2: _float(3, 7, 3)}, "batch size of gates is 3; expected 2"),
        ({0: _float(2, 7, 12), 2: _float(2, 8, 3)}, "length of gates is 8; expected 7"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(spec, change: dict, message: str):
    inputs = [X, W, GATES, BIAS]
    for index, changed in change.items():
        inputs[index] = changed
    with pytest.raises(ExportError, match=f"{spec.name}: .*({message})"):
        _infer(spec, *inputs)


@pytest.mark.parametrize("num_heads", [0, -3])
def test_number_of_heads_must_be_positive(num_heads: int):
    with pytest.raises(ExportError, match=f"num_heads is {num_heads}; expected at least 1"):
        _infer(MOH_QUERY_PROJECTION, X, W, GATES, num_heads=num_heads)

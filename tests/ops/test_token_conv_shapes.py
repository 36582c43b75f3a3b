from __future__ import annotations

import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import MOH_TOKEN_CONV, TensorType
from moh_deploy.ops.spec import AttributeValue, OpDim


def _float(*shape: OpDim) -> TensorType:
    return TensorType("float32", shape)


TOKENS, WEIGHT, BIAS = _float("batch", 12, 6), _float(6, 1, 3, 5), _float(6)
IMAGE = {"channels": 6, "height": 3, "width": 4}


def _infer(*inputs: TensorType | None, **attributes: AttributeValue) -> TensorType:
    complete = MOH_TOKEN_CONV.complete({**IMAGE, **attributes})
    return MOH_TOKEN_CONV.shape_rule(inputs, complete)[0]


def test_output_has_the_type_of_the_tokens():
    assert _infer(TOKENS, WEIGHT, BIAS) == TOKENS
    half = [TensorType("float16", given.shape) for given in (TOKENS, WEIGHT)]
    assert _infer(*half).dtype == "float16"


def test_gates_are_not_in_the_output():
    assert _infer(_float("batch", 12, 12), WEIGHT, gated=1) == TOKENS


def test_sizes_that_are_not_known_are_taken_from_the_attributes():
    assert _infer(_float(None, None, None), _float(None, 1, None, None)) == _float(None, 12, 6)


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ((), {}, "input 'X' is absent"),
        ((TOKENS,), {}, "input 'W' is absent"),
        ((TOKENS, WEIGHT), {"height": 4}, "number of tokens of X is 12; expected 16"),
        ((TOKENS, WEIGHT), {"height": 0}, "height is 0; expected at least 1"),
        ((TOKENS, WEIGHT), {"width": -4}, "width is -4; expected at least 1"),
        ((TOKENS, WEIGHT), {"gated": 1}, "last size of X is 6; expected 12"),
        ((TOKENS, WEIGHT), {"gated": 2}, "gated is 2; expected 0 or 1"),
        ((TOKENS, WEIGHT), {"channels": 5}, "last size of X is 6; expected 5"),
        ((TOKENS, WEIGHT), {"activation": "relu"}, "activation is 'relu'; expected none or gelu"),
        ((TOKENS, _float(5, 1, 3, 3)), {}, "first size of W is 5; expected 6"),
        ((TOKENS, _float(6, 6, 3, 3)), {}, "second size of W is 6; expected 1"),
        ((TOKENS, _float(6, 1, 2, 3)), {}, "kernel height is 2; expected an odd number"),
        ((TOKENS, _float(6, 1, 3, 4)), {}, "kernel width is 4; expected an odd number"),
        ((TOKENS, WEIGHT, _float(5)), {}, "size of bias is 5; expected 6"),
        ((TOKENS, WEIGHT, _float(6, 1)), {}, r"bias has rank 2, shape \[6, 1\]; expected rank 1"),
        ((TOKENS, WEIGHT, None, _float(12)), {}, "size of input_bias is 12; expected 6"),
        ((TOKENS, WEIGHT, None, _float(1, 1, 6)), {}, "input_bias has rank 3"),
        ((_float(12, 6), WEIGHT), {}, r"X has rank 2, shape \[12, 6\]; expected rank 3"),
        ((TOKENS, TensorType("float16", WEIGHT.shape)), {}, "W has dtype float16; expected float"),
        ((TensorType("int64", TOKENS.shape), WEIGHT), {}, "X has dtype int64"),
    ],
)
def test_combinations_that_are_not_defined_are_refused(inputs, attributes, message: str):
    with pytest.raises(ExportError, match=message):
        _infer(*inputs, **attributes)

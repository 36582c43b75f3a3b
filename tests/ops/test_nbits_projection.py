"""What the contract of the projections with weights of 4 bits asks for."""

from __future__ import annotations

import numpy as np
import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import OPS, TensorType
from moh_deploy.ops.cases import find_mismatch
from moh_deploy.ops.nbits_product import unpacked
from tests.ops.case_models import case_model
from tests.ops.cases import named_case

OPS_HERE = ("MoHQueryProjectionNBits", "MoHOutputProjectionNBits")


def test_first_number_of_a_byte_is_in_its_lower_half_and_8_is_nought():
    packed = np.full((1, 1, 16), 0x88, np.uint8)
    packed[0, 0, 1] = 0xF0  # rows 2 and 3: 0 and 15
    weight = unpacked(packed, np.full((1, 1), 0.5, np.float32))
    assert weight.shape == (32, 1)
    np.testing.assert_array_equal(weight[2:4, 0], [-4.0, 3.5])
    assert not weight[[0, 1, *range(4, 32)]].any()


def test_queries_of_closed_heads_may_be_anything_and_those_of_open_heads_may_not():
    case = named_case("MoHQueryProjectionNBits", "plain")
    gates = case.inputs()[2]
    right = OPS[case.op].reference(case.inputs(), case.attributes)[0].astype(np.float32)
    queries = right.copy()
    queries[np.repeat(gates == 0, 5, axis=-1)] = np.nan
    assert find_mismatch(case, [queries]) is None
    queries[(*np.argwhere(gates != 0)[0][:2], int(np.argwhere(gates != 0)[0][2]) * 5)] += 1e-3
    assert "Q is out of tolerance" in str(find_mismatch(case, [queries]))


@pytest.mark.parametrize("op", OPS_HERE)
def test_body_is_the_product_that_onnxruntime_has(op: str):
    (body,) = case_model(named_case(op, "plain")).functions
    assert [(node.domain, node.op_type) for node in body.node] == [
        ("com.microsoft", "MatMulNBits"),
        ("", "Add"),
    ]
    (body,) = case_model(named_case(op, "no_bias")).functions
    assert [node.op_type for node in body.node] == ["MatMulNBits"]


_TYPES = {
    "X": TensorType("float32", ("batch", "tokens", 40)),
    "W": TensorType("uint8", (12, 2, 16)),
    "gates": TensorType("float32", ("batch", None, 4)),
    "scales": TensorType("float32", (12, 2)),
    "bias": TensorType("float32", (12,)),
}
_ATTRIBUTES = {"num_heads": 4, "in_features": 40, "out_features": 12}


@pytest.mark.parametrize("op", OPS_HERE)
def test_result_has_the_tokens_of_x_and_the_columns_of_the_weight(op: str):
    (found,) = OPS[op].shape_rule(list(_TYPES.values()), _ATTRIBUTES)
    assert found == TensorType("float32", ("batch", "tokens", 12))
    (without,) = OPS[op].shape_rule(list(_TYPES.values())[:4], _ATTRIBUTES)
    assert without == found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": TensorType("float16", ("b", "s", 40))}, "X has dtype float16; expected float32"),
        ({"X": TensorType("float32", ("b", "s", 41))}, "last size of X is 41; expected 40"),
        ({"W": TensorType("int8", (12, 2, 16))}, "W has dtype int8; expected uint8"),
        ({"W": TensorType("uint8", (12, 3, 16))}, "number of blocks of W is 3; expected 2"),
        ({"W": TensorType("uint8", (12, 2, 32))}, "number of bytes of a block of W is 32"),
        ({"gates": TensorType("float32", ("b", "s", 3))}, "number of heads in gates is 3"),
        ({"scales": TensorType("float32", (12, 1))}, "number of blocks of scales is 1"),
        ({"bias": TensorType("float32", (11,))}, "size of bias is 11; expected 12"),
        ({"scales": None}, "input 'scales' is absent"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict, message: str):
    types = list({**_TYPES, **changed}.values())
    with pytest.raises(ExportError, match=message):
        OPS["MoHQueryProjectionNBits"].shape_rule(types, _ATTRIBUTES)


def test_heads_that_do_not_divide_the_weight_are_refused():
    with pytest.raises(ExportError, match="out_features is 12; expected a multiple of its 5 heads"):
        OPS[OPS_HERE[0]].shape_rule(list(_TYPES.values()), {**_ATTRIBUTES, "num_heads": 5})
    with pytest.raises(ExportError, match="in_features is 40; expected a multiple of its 3 heads"):
        OPS[OPS_HERE[1]].shape_rule(list(_TYPES.values()), {**_ATTRIBUTES, "num_heads": 3})

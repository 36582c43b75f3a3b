"""What the contract of the ops with weights of few bits asks for."""

import numpy as np
import pytest

from moh_deploy.ops import OPS
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


@pytest.mark.parametrize(("name", "bits"), [("plain", 4), ("eight_bits", 8)])
def test_body_of_a_product_is_the_one_that_onnxruntime_has(name: str, bits: int):
    model = case_model(named_case("MoHMatMulNBits", name))
    (body,) = model.functions
    assert [(node.domain, node.op_type) for node in body.node] == [("com.microsoft", "MatMulNBits")]
    assert {given.name: given.i for given in model.graph.node[0].attribute}["bits"] == bits

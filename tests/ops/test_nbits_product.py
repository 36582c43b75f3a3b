"""What the contract of the product with weights of few bits asks for."""

from __future__ import annotations

import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import MOH_MATMUL_NBITS, TensorType
from tests.ops.case_models import case_model
from tests.ops.cases import named_case

_ATTRIBUTES = {"in_features": 40, "out_features": 12, "bits": 8}
_TYPES = {
    "X": TensorType("float32", ("batch", "tokens", 40)),
    "W": TensorType("uint8", (12, 2, 32)),
    "scales": TensorType("float32", (12, 2)),
}


@pytest.mark.parametrize(("name", "bits"), [("plain", 4), ("eight_bits", 8)])
def test_body_is_the_product_that_onnxruntime_has(name: str, bits: int):
    model = case_model(named_case("MoHMatMulNBits", name))
    (body,) = model.functions
    assert [(node.domain, node.op_type) for node in body.node] == [("com.microsoft", "MatMulNBits")]
    assert {one.name: one.i for one in model.graph.node[0].attribute}["bits"] == bits


def test_result_has_the_dimensions_of_x_but_the_last():
    (result,) = MOH_MATMUL_NBITS.shape_rule([*_TYPES.values()], _ATTRIBUTES)
    assert result == TensorType("float32", ("batch", "tokens", 12))


@pytest.mark.parametrize(
    ("types", "attributes", "message"),
    [
        ({"X": TensorType("float16", (1, 2, 40))}, {}, "X has dtype float16; expected float32"),
        ({"X": TensorType("float32", (40,))}, {}, "X has rank 1"),
        ({"X": TensorType("float32", (1, 2, 41))}, {}, "last size of X is 41; expected 40"),
        ({"W": TensorType("uint8", (12, 2, 16))}, {}, "bytes of a block of W is 16; expected 32"),
        ({"W": TensorType("uint8", (12, 1, 32))}, {}, "blocks of W is 1; expected 2"),
        ({"scales": TensorType("float32", (11, 2))}, {}, "columns of scales is 11; expected 12"),
        ({"scales": None}, {}, "input 'scales' is absent"),
        ({}, {"bits": 2}, "bits is 2; expected 4 or 8"),
    ],
)
def test_what_does_not_fit_is_refused(types: dict, attributes: dict, message: str):
    with pytest.raises(ExportError, match=message):
        MOH_MATMUL_NBITS.shape_rule([*(_TYPES | types).values()], _ATTRIBUTES | attributes)

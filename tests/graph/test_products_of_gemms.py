from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.plain_products import products_of_gemms


def model(*, transposed: bool, biased: bool) -> onnx.ModelProto:
    weight = np.arange(12, dtype=np.float32).reshape((4, 3) if transposed else (3, 4))
    names = ["x", "w", *(["b"] if biased else [])]
    gemm = helper.make_node("Gemm", names, ["y"], name="last", transB=int(transposed))
    other = helper.make_node("Gemm", ["y", "square"], ["z"], name="other")
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4]) for n in "yz"]
    stored = {"w": weight, "square": np.eye(4, dtype=np.float32)}
    if biased:
        stored["b"] = np.arange(4, dtype=np.float32)
    graph = helper.make_graph(
        [gemm, other],
        "gemms",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        results,
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_gemm_becomes_a_product_of_its_name(transposed: bool, biased: bool):
    proto = model(transposed=transposed, biased=biased)
    changed = ir.from_proto(proto)
    assert products_of_gemms(changed, {"last"})
    (product,) = (node for node in changed.graph if node.name == "last")
    assert product.op_type == "MatMul"
    assert [node.name for node in changed.graph if node.op_type == "Gemm"] == ["other"]
    x = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
    after = ReferenceEvaluator(ir.to_proto(changed)).run(None, x)
    for got, expected in zip(after, ReferenceEvaluator(proto).run(None, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_gemm_of_another_name_stays():
    assert not products_of_gemms(ir.from_proto(model(transposed=True, biased=True)), {"y"})

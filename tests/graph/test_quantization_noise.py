from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.quantization_noise import add_quantization_noise
from moh_deploy.graph.weight_noise import weight_noise
from moh_deploy.system.npz import Array

ROWS, INNER, COLUMNS = 5, 7, 3


@pytest.fixture
def model() -> onnx.ModelProto:
    """A product in int8 whose operands and result are outputs."""
    weights = np.random.default_rng(0).integers(-128, 128, (INNER, COLUMNS), dtype=np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["x8", "scale", "zero"], name="round"),
        helper.make_node("Identity", ["w8"], ["read"]),
        helper.make_node("MatMulInteger", ["x8", "w8", "zero"], ["y"], name="product"),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INNER])]
    results = [
        helper.make_tensor_value_info("x8", TensorProto.UINT8, ["rows", INNER]),
        helper.make_tensor_value_info("read", TensorProto.INT8, [INNER, COLUMNS]),
        helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", COLUMNS]),
    ]
    graph = helper.make_graph(
        nodes, "int8", given, results, [numpy_helper.from_array(weights, "w8")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def run(model: onnx.ModelProto, **more: Array) -> list[Array]:
    x = np.random.default_rng(1).standard_normal((ROWS, INNER)).astype(np.float32)
    return ReferenceEvaluator(model).run(None, {"x": x, **more})


def test_no_step_moves_nothing(model: onnx.ModelProto):
    exact = run(model)
    add_quantization_noise(model.graph)
    onnx.checker.check_model(model, full_check=True)
    for got, expected in zip(run(model, **weight_noise(0.0, 1)), exact, strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def test_operands_move_by_one_step_and_the_product_with_them(model: onnx.ModelProto):
    exact = run(model)
    add_quantization_noise(model.graph)
    moved = run(model, **weight_noise(1.0, 1))
    for got, expected in zip(moved[:2], exact[:2], strict=True):
        steps = got.astype(int) - expected.astype(int)
        assert set(np.unique(steps)) == {-1, 0, 1}
        assert got.dtype == expected.dtype

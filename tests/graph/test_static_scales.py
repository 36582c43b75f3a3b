import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.static_scales import (
    is_quantized,
    quantize_static,
    ranges_of,
    read_by,
    return_ranges,
)
from moh_deploy.system.npz import Array

ROWS, INNER, COLUMNS = 6, 5, 3
RNG = np.random.default_rng(2)
W = (RNG.standard_normal((INNER, COLUMNS)) * [1, 30, 0]).astype(np.float32)
G = RNG.standard_normal((COLUMNS, INNER)).astype(np.float32)  # read transposed
BIAS = RNG.standard_normal(COLUMNS).astype(np.float32)
X = (RNG.standard_normal((ROWS, INNER)) * 3).astype(np.float32)


@pytest.fixture
def model() -> onnx.ModelProto:
    """Two products that read one value, and a third that is to stay in float32."""
    found = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> two (float[rows, 5] x) =>'
        " (float[rows, 3] y, float[rows, 3] z, float[rows, 3] kept) {"
        " h = Sin (x) [first] y = MatMul (h, W) [second] z = Gemm <transB = 1> (h, G, bias)"
        " [third] kept = MatMul (h, W) }"
    )
    weights = {"W": W, "G": G, "bias": BIAS}
    found.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return found


def quantized(model: onnx.ModelProto, limits: tuple[float, float]) -> onnx.ModelProto:
    graph = ir.serde.deserialize_model(model)
    assert read_by(graph, ["first", "second"]) == ("h",)
    quantize_static(graph, ["first", "second"], {"h": limits})
    assert {n.name: is_quantized(n) for n in graph.graph if n.op_type == "MatMul"} == {
        "first": True,
        "second": True,
        "third": False,
    }
    found = ir.serde.serialize_model(graph)
    onnx.checker.check_model(found, full_check=True)
    return found


def rounded(exact: Array, largest: Array | float) -> Array:
    """Round to 127 steps on each side of 0, in float64."""
    step = np.where(np.asarray(largest) > 0, np.asarray(largest, np.float64) / 127, 1)
    return np.clip(np.rint(exact / step), -128, 127) * step


def rounded_from(exact: Array, least: float, largest: float) -> Array:
    """Round to 255 steps between two numbers, of which 0 is one, in float64."""
    step = (largest - least) / 255
    zero = np.rint(-least / step)
    return (np.clip(np.rint(exact / step) + zero, 0, 255) - zero) * step


@pytest.mark.parametrize(
    "limits",
    [(-1.0, 1.0), (-0.6, 0.4), (-0.9, 0.2), (-0.25, 1.0), (0.0, 1.0)],  # larger numbers saturate
)
def test_products_are_those_of_rounded_operands(
    model: onnx.ModelProto, limits: tuple[float, float]
):
    y, z, kept = ReferenceEvaluator(quantized(model, limits)).run(None, {"x": X})
    h, (short, long) = np.sin(X.astype(np.float64)), sorted(map(abs, limits))
    # Of a range that lies on one side of 0 mostly, steps are finer where 0 is in its place.
    read = rounded_from(h, *limits) if 3 * short < long else rounded(h, long)
    np.testing.assert_allclose(y, read @ rounded(W, np.abs(W).max(axis=0)), atol=1e-4)
    expected = read @ rounded(G.T, np.abs(G.T).max(axis=0)) + BIAS
    np.testing.assert_allclose(z, expected, atol=1e-4)
    np.testing.assert_allclose(kept, h @ W, rtol=1e-5, atol=1e-5)


def test_a_value_that_several_products_read_is_rounded_once(model: onnx.ModelProto):
    found = quantized(model, (-1.0, 1.0))
    assert [node.op_type for node in found.graph.node].count("QuantizeLinear") == 1
    # The weight of the product in float32 stays, the others are stored in int8 alone.
    stored = {tensor.name: tensor.data_type for tensor in found.graph.initializer}
    assert stored["W"] == onnx.TensorProto.FLOAT
    assert stored["W.int8"] == onnx.TensorProto.INT8
    assert "G" not in stored


def test_ranges_hold_zero(model: onnx.ModelProto):
    names = ["x", "h"]
    return_ranges(model.graph, names)
    evaluator = ReferenceEvaluator(model)
    results = dict(zip(evaluator.output_names, evaluator.run(None, {"x": X}), strict=True))
    assert ranges_of(results, names) == {
        "x": (float(X.min()), float(X.max())),
        "h": (float(np.sin(X).min()), float(np.sin(X).max())),
    }
    positive = dict(
        zip(evaluator.output_names, evaluator.run(None, {"x": np.abs(X) + 1}), strict=True)
    )
    assert ranges_of(positive, ["x"])["x"][0] == 0.0

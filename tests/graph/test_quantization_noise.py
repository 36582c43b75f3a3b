import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.quantization_noise import (
    add_quantization_noise,
    has_integer_products,
    unpack_weights,
)
from moh_deploy.graph.weight_noise import weight_noise
from moh_deploy.ops.nbits_product import unpacked
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.system.npz import Array

ROWS, INNER, COLUMNS = 5, 7, 3


@pytest.fixture
def model() -> onnx.ModelProto:
    """A product in int8 whose operands and result are outputs."""
    found = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> int8 (float[rows, 7] x) =>'
        " (uint8[rows, 7] x8, int8[7, 3] read, int32[rows, 3] y) {"
        " x8, scale, zero = DynamicQuantizeLinear (x) read = Identity (w8)"
        " y = MatMulInteger (x8, w8, zero) }"
    )
    weights = np.random.default_rng(0).integers(-128, 128, (INNER, COLUMNS), dtype=np.int8)
    found.graph.initializer.append(numpy_helper.from_array(weights, "w8"))
    return found


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


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_operands_with_static_scales_move_too(dtype: type):
    static = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> static (float[rows, 7] x) =>'
        f" ({np.dtype(dtype).name}[rows, 7] x8, int8[7, 3] read, float[rows, 3] y) {{"
        " x8 = QuantizeLinear (x, scale, zero) xr = DequantizeLinear (x8, scale, zero)"
        " read = Identity (w8) wr = DequantizeLinear <axis = 1> (w8, scales) y = MatMul (xr, wr) }"
    )
    rng = np.random.default_rng(0)
    stored = {
        "w8": rng.integers(-127, 128, (INNER, COLUMNS), dtype=np.int8),
        "scales": rng.uniform(0.5, 1.5, COLUMNS).astype(np.float32),
        "scale": np.float32(0.05),
        "zero": np.zeros((), dtype),
    }
    static.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in stored.items())
    assert has_integer_products(static.graph)
    exact = run(static)
    add_quantization_noise(static.graph)
    onnx.checker.check_model(static, full_check=True)
    for got, expected in zip(run(static, **weight_noise(0.0, 1)), exact, strict=True):
        np.testing.assert_array_equal(got, expected)
    moved = run(static, **weight_noise(1.0, 1))
    for got, expected in zip(moved[:2], exact[:2], strict=True):
        assert set(np.unique(got.astype(int) - expected.astype(int))) == {-1, 0, 1}
    assert np.abs(moved[2] - exact[2]).min() > 0


DEPTH, WIDTH, HEADS = 40, 6, 3
RNG = np.random.default_rng(3)
SCALES = RNG.uniform(0.5, 1.5, (WIDTH, 2)).astype(np.float32)
PACKED = {bits: RNG.integers(0, 256, (WIDTH, 2, 4 * bits), dtype=np.uint8) for bits in (4, 8)}
BIAS = RNG.standard_normal(WIDTH).astype(np.float32)


def product(bits: int) -> onnx.NodeProto:
    numbers = {
        "K": DEPTH,
        "N": WIDTH,
        "bits": bits,
        "block_size": 32,
        "accuracy_level": 4,
    }
    return helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], name="product", domain="com.microsoft", **numbers
    )


def projection() -> onnx.NodeProto:
    node = make_node(
        "MoHQueryProjectionNBits",
        ["x", "w", "gates", "s", "b"],
        ["y"],
        num_heads=HEADS,
        in_features=DEPTH,
        out_features=WIDTH,
    )
    node.domain = "moh.dense.2"
    return node


def our_product() -> onnx.NodeProto:
    numbers = {"in_features": DEPTH, "out_features": WIDTH, "bits": 4}
    return make_node("MoHMatMulNBits", ["x", "w", "s"], ["y"], **numbers)


NODES = {
    "4 bits": product(4),
    "8 bits": product(8),
    "ours": our_product(),
    "projection": projection(),
}


def graph_of(name: str) -> onnx.GraphProto:
    given = {"x": (1, 5, DEPTH), "gates": (1, 5, HEADS)}
    stored = {"w": PACKED[8 if name == "8 bits" else 4], "s": SCALES, "b": BIAS}
    return helper.make_graph(
        [NODES[name]],
        "blocks",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in given.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5, WIDTH))],
        [numpy_helper.from_array(array, n) for n, array in stored.items()],
    )


def switched(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Put the only node into an `If`, as a choice by size does."""
    (node,) = graph.node
    branches = {}
    for branch, domain in (("then_branch", "moh.dense"), ("else_branch", "moh")):
        inner = onnx.NodeProto.FromString(node.SerializeToString())
        inner.domain, inner.output[0] = domain, f"y in {branch}"
        y = helper.make_tensor_value_info(inner.output[0], TensorProto.FLOAT, (1, 5, WIDTH))
        branches[branch] = helper.make_graph([inner], branch, [], [y])
    condition = helper.make_node("If", ["moh.sizes/dense if s<=4, else moh"], ["y"], **branches)
    graph.node[0].CopyFrom(condition)
    graph.initializer.append(helper.make_tensor(condition.input[0], TensorProto.BOOL, (), [True]))
    return graph


def blocks_run(graph: onnx.GraphProto, **more: Array) -> Array:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(model)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 5, DEPTH)).astype(np.float32)
    gates = np.ones((1, 5, HEADS), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        (found,) = ReferenceEvaluator(model).run(None, {"x": x, "gates": gates, **more})
    return found


def expected(name: str) -> Array:
    x = np.random.default_rng(1).standard_normal((1, 5, DEPTH))
    if name == "8 bits":
        wide = (PACKED[8].astype(np.float64) - 128) * SCALES[..., None]
        return x @ wide.reshape(WIDTH, -1).T[:DEPTH]
    product = x @ unpacked(PACKED[4], SCALES)[:DEPTH]
    return product + BIAS if name == "projection" else product


@pytest.mark.parametrize("name", NODES)
def test_standard_operators_compute_the_same(name: str):
    graph = graph_of(name)
    assert has_integer_products(graph)
    assert unpack_weights(graph) == {"w.digits": 255 if name == "8 bits" else 15}
    assert {node.domain for node in graph.node} == {""}
    np.testing.assert_allclose(blocks_run(graph), expected(name), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", NODES)
def test_weights_move_by_up_to_one_step_of_their_scale(name: str):
    graph = graph_of(name)
    add_quantization_noise(graph)
    np.testing.assert_allclose(
        blocks_run(graph, **weight_noise(0.0, 1)), expected(name), rtol=1e-4, atol=1e-3
    )
    moved = blocks_run(graph, **weight_noise(1.0, 1)) - expected(name)
    x = np.abs(np.random.default_rng(1).standard_normal((1, 5, DEPTH)))
    most = x @ np.repeat(SCALES, 32, axis=1).T[:DEPTH]
    assert np.all(np.abs(moved) <= most + 1e-3)
    # Two thirds of all weights move, one way or the other.
    assert np.sqrt((moved**2).mean()) > 0.1 * most.mean()


def test_digits_stay_within_what_their_bits_hold():
    graph = graph_of("4 bits")
    add_quantization_noise(graph)
    graph.output.append(helper.make_tensor_value_info("w.digits", TensorProto.UINT8, None))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    x = np.zeros((1, 5, DEPTH), np.float32)
    given = {"x": x, "gates": x[..., :HEADS], **weight_noise(1.0, 1)}
    _, digits = ReferenceEvaluator(model).run(None, given)
    before = np.stack([PACKED[4] & 15, PACKED[4] >> 4], axis=-1).astype(int)
    assert digits.min() == 0
    assert digits.max() == 15
    assert set(np.unique(digits.astype(int) - before)) == {-1, 0, 1}


def test_projections_that_sizes_choose_between_are_unpacked_too():
    graph = switched(graph_of("projection"))
    assert has_integer_products(graph)
    assert unpack_weights(graph) == {"w.digits": 15}
    assert "If" not in {node.op_type for node in graph.node}
    np.testing.assert_allclose(blocks_run(graph), expected("projection"), rtol=1e-4, atol=1e-3)

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from moh_deploy.graph.forced_gates import GATES_INPUT, computed_gates
from moh_deploy.graph.weight_noise import add_weight_noise, has_low_weights, weight_noise
from moh_deploy.ops import OPS
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.variants import PackageVariants
from tests.handmade_package import model, write_package

TYPES = {"gates_0": np.dtype(np.float32)}


def test_model_takes_the_gates_that_are_fed_and_returns_those_it_computes(tmp_path: Path):
    package = write_package(tmp_path / "package")
    runner = PackageVariants(package, Variant(kernels="off")).forced(TYPES)
    recorded = package.vectors[0]
    twice = {"gates_0.forced": recorded.gates[0] * np.float32(2)}
    got = runner.run({**recorded.inputs, **twice})
    np.testing.assert_allclose(got["y"], 2 * recorded.outputs["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[computed_gates("gates_0")], recorded.gates[0], atol=1e-5)


def rewired(package: OnnxPackage, *nodes: onnx.NodeProto) -> OnnxPackage:
    """Put nodes between the router, which then makes `made`, and `gates_0`."""
    content = onnx.load(package.model_path)
    content.graph.node[1].output[0] = "made"
    for node in reversed(nodes):
        content.graph.node.insert(2, node)
    attention = next(node for node in content.graph.node if node.op_type == "MoHAttention")
    attention.input[3] = "read"
    onnx.save(content, package.model_path)
    return package


def test_gates_are_fed_where_they_are_made_if_attention_reads_another_view(tmp_path: Path):
    make = onnx.helper.make_node
    turned = make("Transpose", ["made"], ["turned"], perm=[1, 2, 0])  # [S, H, B]
    recorded = make("Transpose", ["turned"], ["gates_0"], perm=[2, 0, 1])
    read = make("Identity", ["made"], ["read"])
    package = rewired(write_package(tmp_path / "package"), turned, recorded, read)
    variants = PackageVariants(package, Variant(kernels="off"))
    assert variants.why_not_forced() is None
    vector = package.vectors[0]
    fed = {"gates_0.forced": vector.gates[0] * np.float32(2)}
    got = variants.forced(TYPES).run({**vector.inputs, **fed})
    np.testing.assert_allclose(got["y"], 2 * vector.outputs["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[computed_gates("gates_0")], vector.gates[0], atol=1e-5)


def test_gates_that_attention_does_not_read_cannot_be_fed(tmp_path: Path):
    make = onnx.helper.make_node
    recorded, read = make("Abs", ["made"], ["gates_0"]), make("Identity", ["made"], ["read"])
    package = rewired(write_package(tmp_path / "package"), recorded, read)
    why_not = PackageVariants(package).why_not_forced()
    assert why_not == ("attention does not compute with the recorded gates in 'blocks.0.attn'")


def test_gates_are_fed_through_operators_between_them_and_attention(tmp_path: Path):
    make = onnx.helper.make_node
    recorded = make("Identity", ["made"], ["gates_0"])
    read = make("Add", ["gates_0", "gates_0"], ["read"])
    package = rewired(write_package(tmp_path / "package"), recorded, read)
    variants = PackageVariants(package, Variant(kernels="off"))
    assert variants.why_not_forced() is None
    vector = package.vectors[0]
    got = variants.forced(TYPES).run({**vector.inputs, "gates_0.forced": vector.gates[0]})
    np.testing.assert_allclose(got["y"], 2 * vector.outputs["y"], rtol=1e-4, atol=1e-5)


def test_a_size_alone_is_no_way_for_gates(tmp_path: Path):
    make = onnx.helper.make_node
    nodes = [
        make("Identity", ["made"], ["gates_0"]),
        make("Shape", ["gates_0"], ["sizes"]),
        make("ConstantOfShape", ["sizes"], ["read"]),
    ]
    package = rewired(write_package(tmp_path / "package"), *nodes)
    assert PackageVariants(package).why_not_forced() is not None


def test_places_of_the_gates_are_those_of_the_ops():
    places = {
        name: [one.name for one in op.inputs].index("gates")
        for name, op in OPS.items()
        if any(one.name == "gates" for one in op.inputs)
    }
    assert places == GATES_INPUT


def low_model() -> onnx.ModelProto:
    weight = np.ones((64, 64), np.float16)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "low",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, [1, 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, [1, 64])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("opset", [18, 20, 22])
def test_weights_move_by_up_to_the_step_and_as_drawn(opset: int):
    import onnxruntime as ort

    content = low_model()
    content.opset_import[0].version = opset
    add_weight_noise(content.graph)
    del content.graph.output[:]
    content.graph.output.append(onnx.helper.make_tensor_value_info("w", 10, [64, 64]))
    session = ort.InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])

    def weights(step: float, draw: int = 0) -> np.ndarray:
        feeds = {"x": np.ones((1, 64), np.float16), **weight_noise(step, draw)}
        (found,) = session.run(["w"], feeds)
        return found.astype(np.float64)

    assert (weights(0) == 1).all()
    first, second = weights(2.0**-10), weights(2.0**-10, draw=1)
    assert (first != second).any()
    assert (first == weights(2.0**-10)).all()
    assert 0 < np.abs(first - 1).max() <= 2.0**-10
    assert abs((first - 1).mean()) < 2.0**-13  # to both sides


def test_infinities_stay_and_nothing_becomes_infinite(tmp_path: Path):
    import onnxruntime as ort

    content = low_model()
    mask = np.asarray([[-np.inf, -65504, 1, np.inf]], np.float16)
    content.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(mask, "w"))
    add_weight_noise(content.graph)
    nodes = list(content.graph.node)[:-1]
    del content.graph.node[:], content.graph.output[:]
    content.graph.node.extend(nodes)
    content.graph.output.append(onnx.helper.make_tensor_value_info("w", 10, [1, 4]))
    session = ort.InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])
    for step in (0, 2.0**-10):
        feeds = {"x": np.ones((1, 64), np.float16), **weight_noise(step, 0)}
        (found,) = session.run(["w"], feeds)
        assert found[0, [0, 3]].tolist() == [-np.inf, np.inf]
        assert -65504 <= found[0, 1] <= -65504 * (1 - step)
        assert abs(found[0, 2] - 1) <= step


def test_float32_weights_and_single_numbers_do_not_move():
    assert not has_low_weights(model().graph)
    content = low_model()
    assert has_low_weights(content.graph)
    single = onnx.numpy_helper.from_array(np.ones(1, np.float16), "w")
    content.graph.initializer[0].CopyFrom(single)
    assert not has_low_weights(content.graph)

"""Operands of attention's products are rounded, each draw elsewhere, and nothing else is."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from moh_deploy.graph.weight_noise import (
    add_weight_noise,
    has_low_weights,
    round_operands,
    weight_noise,
)
from moh_deploy.ops.op_names import DENSE_DOMAIN
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import FUNCTION_BODIES, Runner
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from tests.handmade_package import model as handmade
from tests.routed_package import write_routed


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_routed(tmp_path / "package")


def opened(package: OnnxPackage, *outputs: str) -> Runner:
    return open_runner(package, FUNCTION_BODIES.edited(round_operands).returning(outputs))


def run(package: OnnxPackage, step: float, draw: int = 0) -> dict[str, Array]:
    outputs = ("gates_0", "y_0", "gates_1")
    fed = {**package.vectors[0].inputs, **weight_noise(step, draw)}
    return opened(package, *outputs).run(fed)


def test_without_a_step_the_model_is_as_it_was(package: OnnxPackage):
    exact = run(package, 0.0)
    np.testing.assert_array_equal(exact["gates_0"], package.vectors[0].gates[0])
    np.testing.assert_array_equal(exact["y"], package.vectors[0].outputs["y"])


def test_attention_moves_by_rounding_to_eight_bits_and_what_it_does_not_reach_stays(
    package: OnnxPackage,
):
    exact, rounded = run(package, 0.0), run(package, 1.0)
    np.testing.assert_array_equal(rounded["gates_0"], exact["gates_0"])
    moved = np.abs(rounded["y_0"] - exact["y_0"]).max() / np.abs(exact["y_0"]).max()
    assert 2.0**-11 < moved < 2.0**-6
    assert (rounded["gates_1"] != exact["gates_1"]).any()


def test_each_draw_rounds_elsewhere(package: OnnxPackage):
    assert (run(package, 1.0, draw=1)["y"] != run(package, 1.0, draw=2)["y"]).any()


def test_a_layer_that_runs_dense_is_not_rounded(package: OnnxPackage):
    model = onnx.load(package.model_path)
    for node in model.graph.node:
        if node.op_type == "MoHAttention":
            node.domain = DENSE_DOMAIN
    before = len(model.graph.node)
    round_operands(model.graph)
    assert len(model.graph.node) == before


def low_model() -> onnx.ModelProto:
    text = "g (float16[1, 64] x) => (float16[1, 64] y) { y = MatMul (x, w) }"
    found = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    weight = np.ones((64, 64), np.float16)
    found.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return found


def noisy(content: onnx.ModelProto) -> ort.InferenceSession:
    """A session that returns the weight as it moves."""
    add_weight_noise(content.graph)
    nodes = [node for node in content.graph.node if node.op_type != "MatMul"]
    del content.graph.node[:], content.graph.output[:]
    content.graph.node.extend(nodes)
    content.graph.output.append(onnx.helper.make_tensor_value_info("w", 10, None))
    return ort.InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])


X = {"x": np.ones((1, 64), np.float16)}


@pytest.mark.parametrize("opset", [18, 20, 22])
def test_weights_move_by_up_to_the_step_and_as_drawn(opset: int):
    content = low_model()
    content.opset_import[0].version = opset
    session = noisy(content)

    def weights(step: float, draw: int = 0) -> np.ndarray:
        return session.run(["w"], {**X, **weight_noise(step, draw)})[0].astype(np.float64)

    assert (weights(0) == 1).all()
    first, second = weights(2.0**-10), weights(2.0**-10, draw=1)
    assert (first != second).any()
    assert (first == weights(2.0**-10)).all()
    assert 0 < np.abs(first - 1).max() <= 2.0**-10
    assert abs((first - 1).mean()) < 2.0**-13  # to both sides


def test_infinities_stay_and_nothing_becomes_infinite(tmp_path: Path):
    content = low_model()
    mask = np.asarray([[-np.inf, -65504, 1, np.inf]], np.float16)
    content.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(mask, "w"))
    session = noisy(content)
    for step in (0, 2.0**-10):
        (found,) = session.run(["w"], {**X, **weight_noise(step, 0)})
        assert found[0, [0, 3]].tolist() == [-np.inf, np.inf]
        assert -65504 <= found[0, 1] <= -65504 * (1 - step)
        assert abs(found[0, 2] - 1) <= step


def test_float32_weights_and_single_numbers_do_not_move():
    assert not has_low_weights(handmade().graph)
    content = low_model()
    assert has_low_weights(content.graph)
    single = onnx.numpy_helper.from_array(np.ones(1, np.float16), "w")
    content.graph.initializer[0].CopyFrom(single)
    assert not has_low_weights(content.graph)

"""Operands of attention's products are rounded, each draw elsewhere, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from moh_deploy.graph.weight_noise import round_operands, weight_noise
from moh_deploy.ops.op_names import DENSE_DOMAIN
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import FUNCTION_BODIES, Runner
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
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

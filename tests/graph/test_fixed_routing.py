from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from moh_deploy.graph.forced_gates import fix_routing, fixed_input, routed_values, why_not_fixed
from moh_deploy.package import OnnxPackage
from moh_deploy.package.graph_nodes import all_nodes
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from tests.handmade_package import LAYER, model
from tests.two_layers import LAYERS, ROUTER, write_two_layers

GATES = np.ones((2, 3, 4), np.float32)


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def graph_of(package: OnnxPackage) -> onnx.GraphProto:
    return onnx.load(package.model_path).graph


def test_routers_are_gone_and_what_else_there_is_stays(package: OnnxPackage):
    graph = graph_of(package)
    before = [node.name for node in graph.node]
    routed = routed_values(graph, LAYERS)
    assert routed == ["gates_0", "gates_1"]
    fix_routing(graph, dict.fromkeys(routed, GATES))
    gone = set(before) - {node.name for node in graph.node}
    assert gone == {"router", "relu", ROUTER}
    assert [one.name for one in graph.input] == ["x", "gates_0.fixed", "gates_1.fixed"]


def test_model_computes_with_what_is_fed(package: OnnxPackage):
    recorded = package.vectors[0]
    runner = open_runner(
        package,
        Variant(edits=(lambda graph: fix_routing(graph, {"gates_0": GATES, "gates_1": GATES}),)),
    )
    gates = [fixed_input(one) for one in package.gate_names]
    same = runner.run({**recorded.inputs, **dict(zip(gates, recorded.gates, strict=True))})
    np.testing.assert_allclose(same["y"], recorded.outputs["y"], atol=1e-5)
    closed = runner.run({**recorded.inputs, **dict.fromkeys(gates, np.zeros_like(GATES))})
    assert not closed["y"].any()


def test_what_only_views_need_of_a_router_goes_with_it():
    graph = model().graph
    nodes = [
        helper.make_node("Unsqueeze", ["gates_0", "axes"], ["gates_1"], name="view"),
        helper.make_node("Squeeze", ["gates_1", "axes"], ["read"], name="back"),
    ]
    for at, node in enumerate(nodes):
        graph.node.insert(2 + at, node)
    graph.node[4].input[3] = "read"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([3]), "axes"))
    layers = [replace(LAYER, gates="gates_1")]
    assert routed_values(graph, layers) == ["gates_0"]
    fix_routing(graph, {"gates_0": GATES})
    assert [node.name for node in graph.node] == ["view", "back", LAYER.node, "scaled"]


def test_what_branches_read_stays():
    graph = model().graph
    scaled = graph.node.pop()
    branch = helper.make_graph(
        [scaled], "branch", [], [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    )
    graph.node.append(
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=branch, else_branch=branch)
    )
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    fix_routing(graph, {"gates_0": GATES})
    assert [node.name for node in all_nodes(graph)] == [LAYER.node, "if", "scaled", "scaled"]


def test_routers_that_are_needed_otherwise_cannot_go(package: OnnxPackage):
    assert why_not_fixed(graph_of(package), LAYERS) is None
    assert why_not_fixed(graph_of(package), ()) == "no layer computes its gates"
    graph = graph_of(package)
    graph.output.append(onnx.ValueInfoProto(name="gates_0"))
    assert why_not_fixed(graph, LAYERS) == (
        "the model's outputs are made of what routers compute, too: gates_0"
    )
    graph = graph_of(package)
    graph.node[2].input[3] = "scores"
    assert "does not compute with the recorded gates in 'blocks.0.attn'" in (
        why_not_fixed(graph, LAYERS) or ""
    )

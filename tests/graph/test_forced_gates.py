from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from moh_deploy.graph.forced_gates import (
    GATES_INPUT,
    computed_gates,
    drop_unread,
    fix_routing,
    fixed_input,
    routed_values,
    why_not_fixed,
)
from moh_deploy.ops import OPS
from moh_deploy.package import OnnxPackage
from moh_deploy.package.graph_nodes import all_nodes
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants
from tests.handmade_package import LAYER, model, write_package
from tests.two_layers import LAYERS, ROUTER, write_two_layers

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


make = helper.make_node


@pytest.mark.parametrize(
    ("nodes", "times"),
    [
        (
            [
                make("Transpose", ["made"], ["turned"], perm=[1, 2, 0]),  # [S, H, B]
                make("Transpose", ["turned"], ["gates_0"], perm=[2, 0, 1]),
                make("Identity", ["made"], ["read"]),
            ],
            2,
        ),
        (
            [
                make("Identity", ["made"], ["gates_0"]),
                make("Add", ["gates_0", "gates_0"], ["read"]),
            ],
            1,
        ),
    ],
    ids=["another view of the gates", "operators between gates and attention"],
)
def test_gates_are_fed_where_they_are_made(tmp_path: Path, nodes: list[onnx.NodeProto], times: int):
    package = rewired(write_package(tmp_path / "package"), *nodes)
    variants = PackageVariants(package, Variant(kernels="off"))
    assert variants.why_not_forced() is None
    vector = package.vectors[0]
    fed = {"gates_0.forced": vector.gates[0] * np.float32(times)}
    got = variants.forced(TYPES).run({**vector.inputs, **fed})
    np.testing.assert_allclose(got["y"], 2 * vector.outputs["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[computed_gates("gates_0")], vector.gates[0], atol=1e-5)


@pytest.mark.parametrize(
    "nodes",
    [
        [make("Abs", ["made"], ["gates_0"]), make("Identity", ["made"], ["read"])],
        [  # a size alone is no way for gates
            make("Identity", ["made"], ["gates_0"]),
            make("Shape", ["gates_0"], ["sizes"]),
            make("ConstantOfShape", ["sizes"], ["read"]),
        ],
    ],
    ids=["another value", "their size"],
)
def test_gates_that_attention_does_not_read_cannot_be_fed(
    tmp_path: Path, nodes: list[onnx.NodeProto]
):
    package = rewired(write_package(tmp_path / "package"), *nodes)
    why_not = PackageVariants(package).why_not_forced()
    assert why_not == "attention does not compute with the recorded gates in 'blocks.0.attn'"


def test_places_of_the_gates_are_those_of_the_ops():
    places = {
        name: [value.name for value in op.inputs].index("gates")
        for name, op in OPS.items()
        if any(value.name == "gates" for value in op.inputs)
    }
    assert places == GATES_INPUT


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
    assert [value.name for value in graph.input] == ["x", "gates_0.fixed", "gates_1.fixed"]


def test_model_computes_with_what_is_fed(package: OnnxPackage):
    recorded = package.vectors[0]
    runner = open_runner(
        package,
        Variant(edits=(lambda graph: fix_routing(graph, {"gates_0": GATES, "gates_1": GATES}),)),
    )
    gates = [fixed_input(name) for name in package.gate_names]
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


def test_nodes_go_with_their_last_reader():
    graph = parser.parse_graph(
        "g (float[n] x) => (float[n] y) { a = Mul (x, x) b = Neg (a) y = Add (x, x) }"
    )
    assert drop_unread(graph)
    assert [node.op_type for node in graph.node] == ["Add"]
    assert not drop_unread(graph)


def test_what_a_branch_reads_stays():
    graph = parser.parse_graph(
        """g (bool c, float[n] x) => (float[n] y) {
            a = Mul (x, x)
            y = If (c) <then_branch = t () => (float[n] z) { z = Neg (a) },
                        else_branch = e () => (float[n] w) { w = Identity (x) }>
        }"""
    )
    assert not drop_unread(graph)

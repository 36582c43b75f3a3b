from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from onnx import helper

from moh_deploy.package.graph_nodes import lost_at, router_nodes
from tests.handmade_package import LAYER

ROUTED = replace(LAYER, router="top_k", router_replaced=True)


@pytest.fixture
def graph() -> onnx.GraphProto:
    """Two routers in a row, the second one's gates reordered on their way to `gates_0`."""
    nodes = [
        helper.make_node("MoHRouter", ["x"], ["first"], name="first", domain="moh"),
        helper.make_node("MoHRouter", ["first"], ["second"], name="second", domain="moh"),
        helper.make_node("Gather", ["second", "order"], ["gathered"], name="gather", axis=2),
        helper.make_node("Identity", ["gathered"], ["gates_0"], name="copy"),
    ]
    return helper.make_graph(nodes, "routers", [], [])


def test_router_is_the_nearest_one_behind_the_gates(graph: onnx.GraphProto):
    layers = (ROUTED, replace(ROUTED, gates="first"))
    assert router_nodes(graph, layers) == ("second", "first")


def test_router_of_plain_operators_has_no_node(graph: onnx.GraphProto):
    assert router_nodes(graph, (LAYER, replace(ROUTED, gates="order"))) == (None, None)


def test_router_is_found_behind_any_input(graph: onnx.GraphProto):
    graph.node.extend(
        [
            helper.make_node("MatMul", ["x", "w"], ["scores"]),
            helper.make_node("Equal", ["scores", "zero"], ["tied"]),
            helper.make_node("Where", ["tied", "gathered", "gates_0"], ["chosen"]),
        ]
    )
    assert router_nodes(graph, (replace(ROUTED, gates="chosen"),)) == ("second",)


def test_router_of_an_earlier_layer_is_not_taken_for_one_that_is_lost(graph: onnx.GraphProto):
    graph.node.extend(
        [
            helper.make_node("MoHAttention", ["q", "k", "v", "gates_0"], ["y"], domain="moh"),
            helper.make_node("MatMul", ["y", "w"], ["scores"], name="product"),
            helper.make_node("Softmax", ["scores"], ["soft"], name="softmax"),
            helper.make_node("Identity", ["soft"], ["gates_1"], name="copy_1"),
        ]
    )
    layer = replace(ROUTED, gates="gates_1")
    assert router_nodes(graph, (layer,)) == (None,)
    assert lost_at(graph, layer) == "Identity 'copy_1' <- Softmax 'softmax' <- MatMul 'product'"
    nothing = replace(ROUTED, gates="nothing")
    assert lost_at(graph, nothing) == "'nothing', which no node makes"

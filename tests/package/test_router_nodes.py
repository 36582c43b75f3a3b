from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from onnx import helper

from moh_deploy.package import router_nodes
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

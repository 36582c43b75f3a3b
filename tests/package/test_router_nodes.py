from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import helper

from moh_deploy.package import router_nodes
from tests.handmade_package import LAYER

ROUTED = replace(LAYER, router="top_k", router_replaced=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two routers in a row, the second one's gates reordered on their way to `gates_0`."""
    nodes = [
        helper.make_node("MoHRouter", ["x"], ["first"], name="first", domain="moh"),
        helper.make_node("MoHRouter", ["first"], ["second"], name="second", domain="moh"),
        helper.make_node("Gather", ["second", "order"], ["gathered"], name="gather", axis=2),
        helper.make_node("Identity", ["gathered"], ["gates_0"], name="copy"),
    ]
    graph = helper.make_graph(nodes, "routers", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_router_is_the_nearest_one_behind_the_gates(model: Path):
    layers = (ROUTED, replace(ROUTED, gates="first"))
    assert router_nodes(model, layers) == ("second", "first")


def test_router_of_plain_operators_has_no_node(model: Path):
    assert router_nodes(model, (LAYER, replace(ROUTED, gates="order"))) == (None, None)

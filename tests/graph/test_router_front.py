from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper

from moh_deploy.graph.router_front import front_values, is_exact, logit_sources
from moh_deploy.graph.router_logits import RouterLogits, router_logits
from moh_deploy.ops.onnx_schema import make_node
from tests.handmade_package import LAYER

ROUTED = replace(LAYER, router="top_k", router_replaced=True, node=None)
ROUTING = {"top_k": 2, "num_shared_heads": 0, "gate_mode": "weighted"}


@pytest.fixture
def graph() -> onnx.GraphProto:
    """Logits are the sigmoid of a product, reshaped, with a bias that the model is given."""
    router = make_node("MoHRouter", ["logits"], ["gates_0"], **ROUTING)
    router.name = "router"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Sigmoid", ["product"], ["scores"]),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Reshape", ["scores", "sizes"], ["shaped"]),
        helper.make_node("Add", ["shaped", "bias"], ["logits"]),
        router,
    ]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "bias")]
    return helper.make_graph(nodes, "front", given, [])


def of(graph: onnx.GraphProto) -> RouterLogits:
    (router,) = router_logits(graph, (ROUTED,))
    assert router is not None
    return router


def test_logits_come_from_products_and_inputs_but_not_from_their_sizes(graph: onnx.GraphProto):
    assert logit_sources(graph, of(graph)) == ("product", "bias")


def test_values_in_front_are_those_between_the_sources_and_the_router(graph: onnx.GraphProto):
    assert front_values(graph, of(graph), "routed_logits") == ("logits", "shaped", "scores")


def test_sigmoid_may_round_equal_numbers_in_two_ways(graph: onnx.GraphProto):
    router = of(graph)
    assert not is_exact(graph, router, "routed_logits", ("product", "bias"))
    assert is_exact(graph, router, "routed_logits", ("scores",))

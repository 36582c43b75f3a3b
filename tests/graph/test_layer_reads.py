from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from onnx import helper

from moh_deploy.graph.layer_reads import router_logits
from moh_deploy.ops.onnx_schema import make_node
from tests.handmade_package import LAYER

ROUTED = replace(LAYER, router="top_k", router_replaced=True, node="attn")
ROUTING = {"top_k": 2, "num_shared_heads": 2, "gate_mode": "weighted"}


def graph(*between: onnx.NodeProto, branch: bool = False) -> onnx.GraphProto:
    """A router without shared logits, and what leads from it to `gates_0` and the attention."""
    router = make_node("MoHRouter", ["logits", "", "stage"], ["made"], **ROUTING)
    router.name = "router"
    copy = helper.make_node("Identity", ["made"], ["gates_0"])
    attention = helper.make_node("MoHAttention", ["q", "k", "v", "gates_0"], ["y"], domain="moh")
    attention.name = "attn"
    if branch:
        attention.output[0] = "inner"
        inner = helper.make_graph([attention], "then", [], [onnx.ValueInfoProto(name="inner")])
        attention = helper.make_node("If", ["condition"], ["y"], else_branch=inner)
    return helper.make_graph([router, *(between or [copy]), attention], "routers", [], [])


@pytest.mark.parametrize("branch", [False, True])
def test_router_says_what_it_reads_and_what_attention_makes(branch: bool):
    (router,) = router_logits(graph(branch=branch), (ROUTED,))
    assert router is not None
    assert router.logits == {"routed_logits": "logits", "stage_logits": "stage"}
    assert (router.gates, router.attention, router.in_order) == ("made", "y", True)
    assert router.attributes["gate_mode"] == "weighted"
    assert router.attributes["top_k"] == 2


def test_router_of_plain_operators_reads_nothing_that_is_known():
    assert router_logits(graph(), (LAYER,)) == (None,)


@pytest.mark.parametrize(
    ("node", "in_order"),
    [
        (helper.make_node("Reshape", ["made", "shape"], ["gates_0"]), True),
        (helper.make_node("Cast", ["made"], ["gates_0"], to=10), True),
        (helper.make_node("Mul", ["made", "weights"], ["gates_0"]), True),
        (helper.make_node("Concat", ["made", "others"], ["gates_0"], axis=2), True),
        (helper.make_node("Transpose", ["made"], ["gates_0"], perm=[1, 0, 2]), False),
        (helper.make_node("Gather", ["made", "order"], ["gates_0"], axis=1), False),
    ],
    ids=lambda one: getattr(one, "op_type", ""),
)
def test_tokens_are_in_order_where_nothing_moves_them(node: onnx.NodeProto, in_order: bool):
    (router,) = router_logits(graph(node), (ROUTED,))
    assert router is not None
    assert router.in_order is in_order

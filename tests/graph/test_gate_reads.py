from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from onnx import helper

from moh_deploy.graph.layer_reads import RECORDED_GATES, gate_reads
from tests.handmade_package import LAYER

PROJECTED = replace(LAYER, node="attn", query_projection="q", gates="gates_0")


def graph(*, by_size: bool = False) -> onnx.GraphProto:
    """A router whose gates are recorded as they are, turned for attention, and cast for queries."""
    attention = helper.make_node("MoHAttention", ["q", "k", "v", "turned"], ["y"], domain="moh")
    attention.name = "attn"
    if by_size:
        attention.output[0] = "inner"
        inner = helper.make_graph([attention], "else", [], [onnx.ValueInfoProto(name="inner")])
        attention = helper.make_node("If", ["condition"], ["y"], else_branch=inner)
    query = helper.make_node("MoHQueryProjection", ["x", "w", "cast"], ["q"], domain="moh")
    query.name = "q"
    router = helper.make_node("MoHRouter", ["logits"], ["made"], name="router", domain="moh")
    nodes = [
        router,
        helper.make_node("Identity", ["made"], ["gates_0"]),
        helper.make_node("Shape", ["made"], ["sizes"]),
        helper.make_node("Reshape", ["made", "sizes"], ["shaped"]),
        helper.make_node("Transpose", ["shaped"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("Cast", ["turned"], ["cast"], to=10),
        query,
        attention,
    ]
    scale = helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [1.0])
    return helper.make_graph(nodes, "reads", [], [], [scale])


@pytest.mark.parametrize("by_size", [False, True])
def test_every_node_of_a_layer_is_asked_what_it_reads(by_size: bool):
    found = {one.reader: one for one in gate_reads(graph(by_size=by_size), PROJECTED, "made")}
    assert {name: one.value for name, one in found.items()} == {
        "MoHAttention": "turned",
        "MoHQueryProjection": "cast",
        RECORDED_GATES: "gates_0",
    }


def test_way_has_what_depends_on_the_router_and_no_sizes():
    attention, query, recorded = gate_reads(graph(), PROJECTED, "made")
    assert [*attention.way] == ["turned", "shaped"]
    assert [*query.way] == ["cast", "turned", "shaped"]
    assert [*recorded.way] == ["gates_0"]
    assert attention.values == ["turned", "made", "shaped", "sizes"]
    assert attention.constants == {"scale"}


def test_value_that_several_read_is_there_once():
    layer = replace(PROJECTED, query_projection=None, gates="turned")
    assert [one.reader for one in gate_reads(graph(), layer, "made")] == ["MoHAttention"]

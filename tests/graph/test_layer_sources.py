from __future__ import annotations

from dataclasses import replace

import onnx
from onnx import helper

from moh_deploy.graph.layer_reads import layer_sources
from tests.handmade_package import LAYER

LAYERS = tuple(replace(LAYER, path=f"l{i}", node=f"attn_{i}", gates=f"g_{i}") for i in range(3))


def graph_of(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    inputs = [onnx.ValueInfoProto(name=name) for name in ("x", "memory", "w")]
    weights = [onnx.TensorProto(name="w")]
    return helper.make_graph(nodes, "g", inputs, [], weights)


def node(op: str, inputs: list[str], output: str, name: str = "") -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=name)


def attention(i: int, query: str, key: str) -> onnx.NodeProto:
    return node("MoHAttention", [query, key, key, f"g_{i}"], f"y_{i}", f"attn_{i}")


def test_attention_has_the_layers_and_inputs_that_it_reads():
    first, second, third = layer_sources(
        graph_of(
            node("MatMul", ["x", "w"], "g_0"),
            attention(0, "x", "x"),
            node("Add", ["x", "y_0"], "h"),
            node("MatMul", ["h", "w"], "g_1"),
            attention(1, "h", "memory"),
            node("Add", ["h", "y_1"], "h_2"),
            node("MatMul", ["memory", "w"], "g_2"),
            attention(2, "memory", "memory"),
        ),
        LAYERS,
    )
    assert (first.attention, first.router) == ({"x"}, {"x"})
    assert (second.attention, second.router) == ({"x", "memory", 0}, {"x", 0})
    assert (third.attention, third.router) == ({"memory"}, {"memory"})


def test_what_only_a_router_reads_does_not_reach_its_attention():
    (layer, *_) = layer_sources(
        graph_of(
            node("MatMul", ["memory", "w"], "logits"),
            node("Transpose", ["logits"], "g_0"),
            attention(0, "x", "x"),
        ),
        LAYERS[:1],
    )
    assert (layer.attention, layer.router) == ({"x"}, {"memory"})

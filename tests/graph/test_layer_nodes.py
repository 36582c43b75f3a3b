from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from moh_deploy.graph.layer_nodes import LayerNodes, layer_nodes
from moh_deploy.ops.onnx_schema import make_node
from tests.handmade_package import ATTRIBUTES, LAYER, model


def graph() -> onnx.GraphProto:
    """Two layers: one with projections and a mask, causal; one of another operator."""
    nodes = [
        make_node("MoHQueryProjection", ["x", "wq", "g"], ["q"], num_heads=4),
        make_node(
            "MoHAttention", ["q", "x", "x", "g", "mask"], ["h"], **ATTRIBUTES | {"is_causal": 1}
        ),
        make_node("MoHOutputProjection", ["h", "wo", "g"], ["y"], num_heads=4),
        helper.make_node(
            "MoHAggregatedAttention", ["y"] * 6, ["z"], kernel_height=3, kernel_width=5
        ),
    ]
    for name, node in zip(("q", "first", "o", "second"), nodes, strict=True):
        node.name = name
    weights = [np.zeros((6, 8), np.float32), np.zeros((8, 10), np.float32)]
    tensors = [numpy_helper.from_array(w, n) for w, n in zip(weights, ("wq", "wo"), strict=True)]
    return helper.make_graph(nodes, "g", [], [], tensors)


def test_operators_of_each_layer_are_read():
    layers = (
        replace(LAYER, node="first", query_projection="q", output_projection="o"),
        replace(LAYER, node="second"),
        replace(LAYER, node=None, replaced=False),
    )
    assert layer_nodes(graph(), layers) == (
        LayerNodes("MoHAttention", True, True, query_features=6, output_features=10),
        LayerNodes("MoHAggregatedAttention", window=15),
        LayerNodes(None),
    )


def test_width_of_a_weight_that_is_no_constant_is_unknown():
    content = graph()
    del content.initializer[:]
    layer = replace(LAYER, node="first", query_projection="q", output_projection="o")
    (found,) = layer_nodes(content, [layer])
    assert (found.query_features, found.output_features) == (None, None)


def test_plain_layer_has_neither_mask_nor_projections():
    assert layer_nodes(model().graph, [LAYER]) == (LayerNodes("MoHAttention"),)

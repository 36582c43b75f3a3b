from dataclasses import replace

import onnx
from onnx import helper, parser

from moh_deploy.graph.layer_nodes import LayerNodes, layer_nodes
from tests.handmade_package import LAYER, model


def graph() -> onnx.GraphProto:
    """Two layers: one with projections and a mask, causal; one of another operator."""
    found = parser.parse_graph("""g () => () {
        [q] q = moh.MoHQueryProjection (x, wq, g)
        [first] h = moh.MoHAttention <is_causal = 1> (q, x, x, g, mask)
        [o] y = moh.MoHOutputProjection (h, wo, g)
        [second] z = moh.MoHAggregatedAttention <kernel_height = 3, kernel_width = 5> (y, y, y)
    }""")
    for name, dims in (("wq", (6, 8)), ("wo", (8, 10))):
        found.initializer.append(onnx.TensorProto(name=name, dims=dims))
    return found


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
    keys = helper.make_tensor_value_info("mask", onnx.TensorProto.BOOL, ["batch", 1, 1, "keys"])
    masked = graph()
    masked.value_info.append(keys)
    assert not layer_nodes(masked, layers[:1])[0].has_mask
    keys.type.tensor_type.shape.dim[2].dim_param = "queries"
    del masked.value_info[:]
    masked.value_info.append(keys)
    assert layer_nodes(masked, layers[:1])[0].has_mask
    content = graph()  # the width of a weight that is no constant is not known
    del content.initializer[:]
    (found,) = layer_nodes(content, layers[:1])
    assert (found.query_features, found.output_features) == (None, None)


def test_plain_layer_has_neither_mask_nor_projections():
    assert layer_nodes(model().graph, [LAYER]) == (LayerNodes("MoHAttention"),)

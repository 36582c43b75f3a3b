from dataclasses import replace

import onnx
from onnx import parser

from moh_deploy.package.graph_nodes import lost_at, router_nodes
from tests.handmade_package import LAYER

ROUTED = replace(LAYER, router="top_k", router_replaced=True)


def graph(more: str = "") -> onnx.GraphProto:
    """Two routers in a row, the second one's gates reordered on their way to `gates_0`."""
    return parser.parse_graph(f"""routers () => () {{
        [first] first = moh.MoHRouter (x) [second] second = moh.MoHRouter (first)
        [gather] gathered = Gather <axis = 2> (second, order) [copy] gates_0 = Identity (gathered)
        {more} }}""")


def test_router_is_the_nearest_one_behind_the_gates():
    layers = (ROUTED, replace(ROUTED, gates="first"))
    assert router_nodes(graph(), layers) == ("second", "first")


def test_router_of_plain_operators_has_no_node():
    assert router_nodes(graph(), (LAYER, replace(ROUTED, gates="order"))) == (None, None)


def test_router_is_found_behind_any_input():
    found = graph("""scores = MatMul (x, w) tied = Equal (scores, zero)
        chosen = Where (tied, gathered, gates_0)""")
    assert router_nodes(found, (replace(ROUTED, gates="chosen"),)) == ("second",)


def test_router_of_an_earlier_layer_is_not_taken_for_one_that_is_lost():
    found = graph("""y = moh.MoHAttention (q, k, v, gates_0) [product] scores = MatMul (y, w)
        [softmax] soft = Softmax (scores) [copy_1] gates_1 = Identity (soft)""")
    layer = replace(ROUTED, gates="gates_1")
    assert router_nodes(found, (layer,)) == (None,)
    assert lost_at(found, layer) == "Identity 'copy_1' <- Softmax 'softmax' <- MatMul 'product'"
    nothing = replace(ROUTED, gates="nothing")
    assert lost_at(found, nothing) == "'nothing', which no node makes"

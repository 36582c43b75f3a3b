from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import parser

from moh_deploy.graph.layer_reads import (
    RECORDED_GATES,
    LayerSources,
    force_logits,
    gate_reads,
    layer_sources,
    router_logits,
)
from tests.handmade_package import LAYER

ROUTED = replace(LAYER, router="top_k", router_replaced=True, node="attn")
ROUTER = """[router] made = moh.MoHRouter
    <top_k = 2, num_shared_heads = 2, gate_mode = "weighted"> (logits, , stage)"""


def attention(gates: str, *, branch: bool) -> str:
    """The node `attn`, in a branch where its layer is chosen by size."""
    node = f"[attn] y = moh.MoHAttention (q, k, v, {gates})"
    inner = node.replace(" y =", " inner =")
    return f"y = If (c) <else_branch = e () => (float inner) {{ {inner} }}>" if branch else node


def graph(between: str = "gates_0 = Identity (made)", *, branch: bool = False) -> onnx.GraphProto:
    """A router without shared logits, and what leads from it to `gates_0` and the attention."""
    body = f"{ROUTER} {between} {attention('gates_0', branch=branch)}"
    return parser.parse_graph(f"routers () => () {{ {body} }}")


@pytest.mark.parametrize("branch", [False, True])
def test_router_says_what_it_reads_and_what_attention_makes(branch: bool):
    (router,) = router_logits(graph(branch=branch), (ROUTED,))
    assert router.logits == {"routed_logits": "logits", "stage_logits": "stage"}
    assert (router.gates, router.attention, router.in_order) == ("made", "y", True)
    assert router.attributes["gate_mode"] == "weighted"
    assert router.attributes["top_k"] == 2


def test_router_of_plain_operators_reads_nothing_that_is_known():
    assert router_logits(graph(), (LAYER,)) == (None,)


@pytest.mark.parametrize(
    ("node", "in_order"),
    [
        ("Reshape (made, shape)", True),
        ("Cast <to = 10> (made)", True),
        ("Mul (made, weights)", True),
        ("Concat <axis = 2> (made, others)", True),
        ("Transpose <perm = [1, 0, 2]> (made)", False),
        ("Gather <axis = 1> (made, order)", False),
    ],
)
def test_tokens_are_in_order_where_nothing_moves_them(node: str, in_order: bool):
    (router,) = router_logits(graph(f"gates_0 = {node}"), (ROUTED,))
    assert router.in_order is in_order


def test_layers_that_share_a_router_are_given_its_logits_once():
    content = graph()
    pair = router_logits(content, (ROUTED, ROUTED))
    routers = [router for router in pair if router is not None]
    dtypes = {"logits": np.dtype(np.float32), "stage": np.dtype(np.float32)}
    force_logits(content, routers, dtypes)
    assert [value.name for value in content.input] == [
        "router.routed_logits.forced",
        "router.stage_logits.forced",
    ]
    assert list(content.node[0].input) == [
        "router.routed_logits.forced",
        "",
        "router.stage_logits.forced",
    ]


PROJECTED = replace(LAYER, node="attn", query_projection="q", gates="gates_0")


def gate_graph(*, by_size: bool = False) -> onnx.GraphProto:
    """A router whose gates are recorded as they are, turned for attention, and cast for queries."""
    body = f"""{ROUTER} gates_0 = Identity (made) sizes = Shape (made)
        shaped = Reshape (made, sizes) turned = Transpose <perm = [1, 0, 2]> (shaped)
        cast = Cast <to = 10> (turned) [q] q = moh.MoHQueryProjection (x, w, cast)
        {attention("turned", branch=by_size)}"""
    return parser.parse_graph(f"reads () => () <float scale = {{1.0}}> {{ {body} }}")


@pytest.mark.parametrize("by_size", [False, True])
def test_every_node_of_a_layer_is_asked_what_it_reads(by_size: bool):
    found = {
        read.reader: read for read in gate_reads(gate_graph(by_size=by_size), PROJECTED, "made")
    }
    assert {name: item.value for name, item in found.items()} == {
        "MoHAttention": "turned",
        "MoHQueryProjection": "cast",
        RECORDED_GATES: "gates_0",
    }


def test_way_has_what_depends_on_the_router_and_no_sizes():
    attention, query, recorded = gate_reads(gate_graph(), PROJECTED, "made")
    assert [*attention.way] == ["turned", "shaped"]
    assert [*query.way] == ["cast", "turned", "shaped"]
    assert [*recorded.way] == ["gates_0"]
    assert attention.values == ["turned", "made", "shaped", "sizes"]
    assert attention.constants == {"scale"}


def test_value_that_several_read_is_there_once():
    layer = replace(PROJECTED, query_projection=None, gates="turned")
    assert [item.reader for item in gate_reads(gate_graph(), layer, "made")] == ["MoHAttention"]


LAYERS = tuple(replace(LAYER, path=f"l{i}", node=f"attn_{i}", gates=f"g_{i}") for i in range(3))


def sources(body: str) -> tuple[LayerSources, ...]:
    found = parser.parse_graph(f"g (float x, float memory, float w) => () {{ {body} }}")
    found.initializer.append(onnx.TensorProto(name="w"))
    return layer_sources(found, LAYERS[: body.count("Attention")])


def test_attention_has_the_layers_and_inputs_that_it_reads():
    first, second, third = sources("""
        g_0 = MatMul (x, w) [attn_0] y_0 = moh.MoHAttention (x, x, x, g_0) h = Add (x, y_0)
        g_1 = MatMul (h, w) [attn_1] y_1 = moh.MoHAttention (h, memory, memory, g_1)
        g_2 = MatMul (memory, w) [attn_2] y_2 = moh.MoHAttention (memory, memory, memory, g_2)""")
    assert (first.attention, first.router) == ({"x"}, {"x"})
    assert (second.attention, second.router) == ({"x", "memory", 0}, {"x", 0})
    assert (third.attention, third.router) == ({"memory"}, {"memory"})


def test_what_only_a_router_reads_does_not_reach_its_attention():
    (layer,) = sources("""logits = MatMul (memory, w) g_0 = Transpose (logits)
        [attn_0] y_0 = moh.MoHAttention (x, x, x, g_0)""")
    assert (layer.attention, layer.router) == ({"x"}, {"memory"})

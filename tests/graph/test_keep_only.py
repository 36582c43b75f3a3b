from __future__ import annotations

from onnx import parser

from moh_deploy.graph.forced_gates import keep_only


def test_what_a_value_does_not_need_is_dropped():
    graph = parser.parse_graph(
        "g (float[n] x, float[n] bias) => (float[n] y) { p = Mul (x, x) y = Add (p, bias) }"
    )
    keep_only(graph, ["p"])
    assert [node.op_type for node in graph.node] == ["Mul"]
    assert [one.name for one in graph.input] == ["x"]
    assert [one.name for one in graph.output] == ["p"]

from __future__ import annotations

from onnx import parser

from moh_deploy.graph.forced_gates import drop_unread


def test_nodes_go_with_their_last_reader():
    graph = parser.parse_graph(
        "g (float[n] x) => (float[n] y) { a = Mul (x, x) b = Neg (a) y = Add (x, x) }"
    )
    assert drop_unread(graph)
    assert [node.op_type for node in graph.node] == ["Add"]
    assert not drop_unread(graph)


def test_what_a_branch_reads_stays():
    graph = parser.parse_graph(
        """g (bool c, float[n] x) => (float[n] y) {
            a = Mul (x, x)
            y = If (c) <then_branch = t () => (float[n] z) { z = Neg (a) },
                        else_branch = e () => (float[n] w) { w = Identity (x) }>
        }"""
    )
    assert not drop_unread(graph)

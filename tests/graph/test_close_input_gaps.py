from __future__ import annotations

import onnx_ir as ir

from moh_deploy.graph.plugin_nodes import close_input_gaps
from tests.ops.case_models import case_model
from tests.ops.cases import named_case


def _model(op: str, name: str) -> ir.Model:
    case = named_case(op, name)
    return ir.from_proto(case_model(case))


def _node(model: ir.Model) -> ir.Node:
    (node,) = model.graph
    return node


def test_a_gap_is_closed_and_named():
    model = _model("MoHAggregatedAttention", "window_bias_only")
    node = _node(model)
    node.name = "stage.0.attn"
    before = list(node.inputs)
    assert before[6:8] == [None, None]
    assert close_input_gaps(model) == ("stage.0.attn",)
    assert list(node.inputs) == [value for value in before if value is not None]
    assert node.attributes["present_inputs"].value == 0b1_0011_1111
    assert not model.functions  # its body has parameters that are no longer given


def test_a_router_without_routed_heads():
    model = _model("MoHRouter", "all_shared")
    close_input_gaps(model)
    assert [value.name for value in _node(model).inputs] == ["shared_logits"]
    assert _node(model).attributes["present_inputs"].value == 0b10


def test_a_node_without_a_gap_stays_as_it_is():
    for op, name in [
        ("MoHAggregatedAttention", "nothing_optional"),
        ("MoHAttention", "plain_rank3"),
    ]:
        model = _model(op, name)
        before = ir.to_proto(model).SerializeToString()
        assert close_input_gaps(model) == ()
        assert ir.to_proto(model).SerializeToString() == before


def test_the_same_node_in_the_dense_domain_is_changed_too():
    model = _model("MoHRouter", "all_shared")
    _node(model).domain = "moh.dense"
    close_input_gaps(model)
    assert len(_node(model).inputs) == 1


def test_other_ops_keep_their_gaps():
    x = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    y = ir.Value(name="y", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    clip = ir.node("Clip", [x, None, x], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[clip], opset_imports={"": 20}, name="g")
    assert close_input_gaps(ir.Model(graph, ir_version=10)) == ()
    assert clip.inputs[1] is None

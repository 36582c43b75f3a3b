from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.errors import ConfigError
from moh_deploy.graph.integer_policy import plan_int4
from moh_deploy.ops.onnx_schema import make_node

RETURNED = "its result is returned"
AMONG_OTHERS = "a router ranks what it makes, among others"


def model(*, scores_of: str = "router") -> ir.Model:
    """A layer with an output projection, and what makes logits; a router ranks a product of its own
    or the queries."""
    router = make_node(
        "MoHRouter", ["logits"], ["gates"], top_k=2, num_shared_heads=0, gate_mode="weighted"
    )
    output = make_node("MoHOutputProjection", ["heads", "w", "gates"], ["o"], num_heads=4)
    router.name, output.name = "rank", "output"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["own"], name="router"),
        helper.make_node("MatMul", ["x", "w"], ["q"], name="queries"),
        helper.make_node("MatMul", ["x", "w"], ["v"], name="values"),
        helper.make_node("Sigmoid", [{"router": "own", "queries": "q"}[scores_of]], ["logits"]),
        router,
        helper.make_node("MatMul", ["q", "v"], ["heads"], name="computed"),
        output,
        helper.make_node("MatMul", ["o", "w"], ["hidden"], name="inner"),
        helper.make_node("Relu", ["hidden"], ["relu"]),
        helper.make_node("MatMul", ["relu", "w"], ["scores"], name="head"),
        helper.make_node("Add", ["scores", "b"], ["y"]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4])]
    # Values are returned as well as read, as those of a cache are.
    names = ("gates", "y", "v", *(("own",) if scores_of == "queries" else ()))
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    stored = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"),
        numpy_helper.from_array(np.ones(4, np.float32), "b"),
    ]
    graph = helper.make_graph(nodes, "products", given, results, stored)
    return ir.from_proto(helper.make_model(graph))


def test_stored_weights_get_4_bits_and_those_of_what_is_returned_8():
    plan = plan_int4(model(), gates={"gates"})
    assert plan.bits == {"queries": 4, "values": 4, "inner": 4, "output": 4, "head": 8}
    assert plan.int8 == {"head": RETURNED}
    assert plan.float32 == {
        "router": "a router ranks what it makes",
        "computed": "its weights are computed, not stored",
    }


def test_queries_that_a_router_ranks_get_8_bits():
    plan = plan_int4(model(scores_of="queries"), gates={"gates"})
    assert plan.bits["queries"] == 8
    assert plan.int8["queries"] == AMONG_OTHERS


def test_projection_whose_weight_is_computed_stays():
    changed = model()
    (output,) = (node for node in changed.graph if node.name == "output")
    output.replace_input_with(1, changed.graph.inputs[0])
    plan = plan_int4(changed, gates={"gates"})
    assert plan.float32["output"] == "its weights are computed, not stored"
    assert "output" not in plan.bits


def test_products_may_be_taken_out_by_name():
    plan = plan_int4(model(), gates={"gates"}, float32=["output", "head"])
    assert plan.float32["output"] == plan.float32["head"] == "asked for"
    assert set(plan.bits) == {"queries", "values", "inner"}
    assert plan.int8 == {}
    with pytest.raises(ConfigError, match="there is no product 'outptu' in the model"):
        plan_int4(model(), gates={"gates"}, float32=["outptu"])

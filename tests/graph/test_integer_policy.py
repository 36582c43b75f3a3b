from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.errors import ConfigError
from moh_deploy.graph.integer_policy import plan_int8
from moh_deploy.ops.onnx_schema import make_node

SCORES = "a router ranks what it makes"
ROUTING = {"top_k": 2, "num_shared_heads": 0, "gate_mode": "weighted"}


def model(*, scores_of: str = "router") -> ir.Model:
    """A router ranks a product of its own, or the queries; another is of two activations."""
    router = make_node("MoHRouter", ["logits"], ["gates"], **ROUTING)
    router.name = "rank"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["own"], name="router"),
        helper.make_node("MatMul", ["x", "w"], ["q"], name="queries"),
        helper.make_node("Sigmoid", [{"router": "own", "queries": "q"}[scores_of]], ["logits"]),
        router,
        helper.make_node("MatMul", ["q", "q"], ["both"], name="computed"),
        helper.make_node("Gemm", ["both", "w"], ["y"], name="last"),
        helper.make_node("Gemm", ["both", "w"], ["z"], name="scaled", alpha=0.5),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])]
    names = ("gates", "y", "z", *(("own",) if scores_of == "queries" else ()))
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "products", given, results, [weight])
    return ir.from_proto(helper.make_model(graph))


def test_product_that_makes_scores_alone_stays_in_float32():
    plan = plan_int8(model(), gates={"gates"})
    assert plan.int8 == ("queries", "last")
    assert plan.float32 == {
        "router": SCORES,
        "computed": "its weights are computed, not stored",
        "scaled": "it scales or transposes what it reads",
    }


def test_queries_that_a_router_ranks_are_in_int8():
    plan = plan_int8(model(scores_of="queries"), gates={"gates"})
    assert plan.int8 == ("router", "queries", "last")


def test_a_score_that_is_an_output_is_nothing_but_a_score_no_more():
    changed = model()
    values = {value.name: value for node in changed.graph for value in node.outputs}
    changed.graph.outputs.append(values["own"])
    assert "router" in plan_int8(changed, gates={"gates"}).int8


@pytest.mark.parametrize(
    ("between", "returned"),
    [
        (["Identity"], "routed"),
        (["Reshape", "Reshape"], "gates"),
        (["Mul"], "routed"),
    ],
)
def test_gates_that_are_returned_reshaped_or_weighed_are_still_a_routers(
    between: list[str], returned: str
):
    # The first of `between` makes what is recorded, further ones what another node reads.
    changed = model()
    values = {value.name: value for node in changed.graph for value in node.outputs}
    gates = values["gates"]
    gates.name = "routed"
    names = ["gates", "viewed"][: len(between)]
    for op_type, name in zip(between, names, strict=True):
        node = ir.Node("", op_type, [gates, gates] if op_type == "Mul" else [gates])
        node.outputs[0].name = name
        changed.graph.append(node)
        values[name] = node.outputs[0]
    values["routed"] = gates
    changed.graph.outputs[0] = values[returned]
    assert plan_int8(changed, gates={"gates"}).float32["router"] == SCORES


def test_products_of_no_name_get_one():
    changed = model()
    for node in changed.graph:
        node.name = None
    assert plan_int8(changed, gates={"gates"}).int8 == ("q.MatMul", "y.Gemm")


def test_products_may_be_taken_out_by_name():
    plan = plan_int8(model(), gates={"gates"})
    assert plan.without(["last", "router"]).int8 == ("queries",)
    assert plan.without(["last"]).float32["last"] == "asked for"
    assert plan.without(["router"]).float32["router"] == SCORES
    with pytest.raises(ConfigError, match="there is no product 'lats'"):
        plan.without(["lats"])

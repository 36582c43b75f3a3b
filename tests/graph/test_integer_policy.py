import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from moh_deploy.errors import ConfigError
from moh_deploy.graph.integer_policy import plan_int4, plan_int8

SCORES = "a router ranks what it makes"


def parsed(inputs: str, outputs: str, body: str) -> ir.Model:
    """A model of products with a stored weight w, and a bias b."""
    found = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "moh" : 1]>'
        f"g ({inputs}) => ({', '.join(f'float {name}' for name in outputs.split())}) {{ {body} }}"
    )
    for value in found.graph.output:
        value.type.tensor_type.ClearField("shape")
    stored = {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}
    weights = (numpy_helper.from_array(array, name) for name, array in stored.items())
    found.graph.initializer.extend(weights)
    return ir.from_proto(found)


ROUTING = '<top_k = 2, num_shared_heads = 0, gate_mode = "weighted">'
RANK = f"[rank] gates = moh.MoHRouter {ROUTING} (logits)"


def model(*, scores_of: str = "own") -> ir.Model:
    """A router ranks a product of its own, or the queries; another is of two activations."""
    body = f"""[router] own = MatMul (x, w) [queries] q = MatMul (x, w)
        logits = Sigmoid ({scores_of}) {RANK} [computed] both = MatMul (q, q)
        [last] y = Gemm (both, w) [scaled] z = Gemm <alpha = 0.5> (both, w)"""
    outputs = "gates y z" if scores_of == "own" else "gates y z own"
    return parsed("float[4, 4] x", outputs, body)


def test_product_that_makes_scores_alone_stays_in_float32():
    plan = plan_int8(model(), gates={"gates"})
    assert plan.few == ("queries", "last")
    assert plan.float32 == {
        "router": SCORES,
        "computed": "its weights are computed, not stored",
        "scaled": "it scales or transposes what it reads",
    }


def test_queries_that_a_router_ranks_are_in_int8():
    plan = plan_int8(model(scores_of="q"), gates={"gates"})
    assert plan.few == ("router", "queries", "last")


def test_a_score_that_is_an_output_is_nothing_but_a_score_no_more():
    changed = model()
    values = {value.name: value for node in changed.graph for value in node.outputs}
    changed.graph.outputs.append(values["own"])
    assert "router" in plan_int8(changed, gates={"gates"}).few


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
    assert plan_int8(changed, gates={"gates"}).few == ("q.MatMul", "y.Gemm")


def test_products_may_be_taken_out_by_name():
    plan = plan_int8(model(), gates={"gates"})
    assert plan.without(["last", "router"]).few == ("queries",)
    assert plan.without(["last"]).float32["last"] == "asked for"
    assert plan.without(["router"]).float32["router"] == SCORES
    with pytest.raises(ConfigError, match="there is no product 'lats'"):
        plan.without(["lats"])


RETURNED = "its result is returned"
AMONG_OTHERS = "a router ranks what it makes, among others"


def int4_model(*, scores_of: str = "own") -> ir.Model:
    """A layer with an output projection, and what makes logits; a router ranks a product of its own
    or the queries. Values are returned as well as read, as those of a cache are."""
    body = f"""[router] own = MatMul (x, w) [queries] q = MatMul (x, w) [values] v = MatMul (x, w)
        logits = Sigmoid ({scores_of}) {RANK} [computed] heads = MatMul (q, v)
        [output] o = moh.MoHOutputProjection <num_heads = 4> (heads, w, gates)
        [inner] hidden = MatMul (o, w) relu = Relu (hidden)
        [head] scores = MatMul (relu, w) y = Add (scores, b)"""
    outputs = "gates y v" if scores_of == "own" else "gates y v own"
    return parsed("float[1, 4, 4] x", outputs, body)


def test_stored_weights_get_4_bits_and_those_of_what_is_returned_8():
    plan = plan_int4(int4_model(), gates={"gates"})
    assert set(plan.few) == {"queries", "values", "inner", "output", "head"}
    assert plan.int8 == {"head": RETURNED}
    assert plan.float32 == {
        "router": "a router ranks what it makes",
        "computed": "its weights are computed, not stored",
    }


def test_queries_that_a_router_ranks_get_8_bits():
    plan = plan_int4(int4_model(scores_of="q"), gates={"gates"})
    assert plan.int8["queries"] == AMONG_OTHERS


def test_projection_whose_weight_is_computed_stays():
    changed = int4_model()
    (output,) = (node for node in changed.graph if node.name == "output")
    output.replace_input_with(1, changed.graph.inputs[0])
    plan = plan_int4(changed, gates={"gates"})
    assert plan.float32["output"] == "its weights are computed, not stored"
    assert "output" not in plan.few


def test_int4_products_may_be_taken_out_by_name():
    plan = plan_int4(int4_model(), gates={"gates"}, float32=["output", "head"])
    assert plan.float32["output"] == plan.float32["head"] == "asked for"
    assert set(plan.few) == {"queries", "values", "inner"}
    assert plan.int8 == {}
    with pytest.raises(ConfigError, match="there is no product 'outptu' in the model"):
        plan_int4(int4_model(), gates={"gates"}, float32=["outptu"])

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from moh_deploy.graph.load_model import add_function_bodies
from moh_deploy.graph.plugin_nodes import (
    close_input_gaps,
    float_masks,
    fuse_attention,
    why_not_fused,
)
from tests.graph.models import attention, model, value
from tests.ops.case_models import case_model
from tests.ops.cases import named_case


def _case(op: str, name: str) -> tuple[ir.Model, ir.Node]:
    content = ir.from_proto(case_model(named_case(op, name)))
    (node,) = content.graph
    return content, node


@pytest.mark.parametrize(
    ("op", "name", "why"),
    [
        ("MoHAttention", "plain_rank3", None),
        ("MoHAttention", "bool_mask_causal", None),
        ("MoHAttention", "negative_scale", "its scale is -"),
        ("MoHAggregatedAttention", "plain", "MoHAggregatedAttention is more than scaled dot-prod"),
    ],
)
def test_why_a_node_cannot_be_fused(op: str, name: str, why: str | None):
    found = why_not_fused(*_case(op, name))
    assert (found is None) == (why is None)
    assert (found or "").startswith(why or "")


def test_inputs_that_attention_does_not_have_are_in_the_way():
    x, key, gates = value("x", [2, 3, 8]), value("key", [2, 3, 8]), value("gates", [2, 3, 4])
    lengths, y = value("lengths", [2], ir.DataType.INT64), value("y", [2, 3, 8])
    node = attention(x, key, gates, y)
    node.resize_inputs(6)
    content = model([x, key, gates, lengths], [y], [node])
    assert why_not_fused(content, node) is None
    node.replace_input_with(5, lengths)
    assert (why_not_fused(content, node) or "").startswith("it has inputs behind attn_mask")
    same = attention(x, x, gates, value("z", [2, 3, 8]))
    assert (why_not_fused(content, same) or "").startswith("its queries are its keys")


@pytest.mark.parametrize(
    ("dtype", "is_fused"), [("FLOAT", False), ("FLOAT16", True), ("BOOL", True)]
)
def test_masks_of_numbers_are_of_the_dtype_of_queries(dtype: str, is_fused: bool):
    half = ir.DataType.FLOAT16
    x, key, y = (value(name, [2, 3, 8], half) for name in ("x", "key", "y"))
    gates, mask = value("gates", [2, 3, 4], half), value("mask", [3, 3], ir.DataType[dtype])
    node = attention(x, key, gates, y, mask)
    found = why_not_fused(model([x, key, gates, mask], [y], [node]), node)
    assert (found is None) == is_fused
    assert is_fused or "its mask is of another dtype than its queries" in found


@pytest.mark.parametrize(("opset", "is_changed"), [(20, True), (21, False)])
def test_an_operator_that_would_mean_something_else_is_in_the_way(opset: int, is_changed: bool):
    content, node = _case("MoHAttention", "plain_rank4")
    content.opset_imports[""] = opset
    x = node.inputs[0]
    content.graph.append(ir.node("GroupNormalization", [x, x, x], {"num_groups": 1}))
    reason = why_not_fused(content, node)
    words = "GroupNormalization is another operator than in the model's opset 20"
    assert (words in (reason or "")) == (reason is not None) == is_changed


def _causal(kv_len: int | str) -> ir.Node:
    """Return the Attention that a causal node over `seq` queries becomes."""
    x, key = value("x", [2, "seq", 8]), value("key", [2, kv_len, 8])
    gates, y = value("gates", [2, "seq", 4]), value("y", [2, "seq", 8])
    node = attention(x, key, gates, y)
    node.name = "causal"
    node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    content = model([x, key, gates], [y], [node])
    name = fuse_attention(content, ["causal"])["causal"]
    (found,) = [item for item in content.graph if item.name == name]
    return found


@pytest.mark.parametrize(("before", "after"), [(20, 23), (23, 23), (24, 24)])
def test_models_of_a_later_opset_keep_it(before: int, after: int):
    content, node = _case("MoHAttention", "plain_rank4")
    node.name = "attn"
    content.opset_imports[""] = before
    fuse_attention(content, ["attn"])
    assert content.opset_imports[""] == after
    assert [item.op_type for item in content.graph].count("Attention") == 1


@pytest.mark.parametrize("kv_len", ["seq", "total", 16])
def test_positions_among_other_keys_than_of_the_queries_are_a_mask(kv_len: int | str):
    found = _causal(kv_len)
    as_many = kv_len == "seq"
    assert found.attributes["is_causal"].as_int() == as_many
    assert len(found.inputs) == (3 if as_many else 4)


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


@pytest.mark.parametrize("domain", ["moh", "moh.dense"])
def test_a_router_without_routed_heads(domain: str):
    model = _model("MoHRouter", "all_shared")
    _node(model).domain = domain
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


def test_other_ops_keep_their_gaps():
    x, y = value("x", [4]), value("y", [4])
    clip = ir.node("Clip", [x, None, x], outputs=[y])
    assert close_input_gaps(model([x], [y], [clip])) == ()
    assert clip.inputs[1] is None


def _mask_model(
    mask_type: ir.DataType = ir.DataType.BOOL, dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Model:
    """y = second(first(x)), both with the same mask."""
    x, gates = value("x", [2, 3, 8], dtype), value("gates", [2, 3, 4], dtype)
    mask = value("mask", [3, 3], mask_type)
    y, z = value("y", [2, 3, 8], dtype), value("z", [2, 3, 8], dtype)
    nodes = [attention(x, x, gates, y, mask), attention(y, y, gates, z, mask)]
    nodes[0].name, nodes[1].name = "first", "second"
    return model([x, gates, mask], [z], nodes)


def _masks(content: ir.Model) -> dict[str, ir.Value]:
    return {n.name: n.inputs[4] for n in content.graph if n.op_type == "MoHAttention"}


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_a_mask_is_turned_once_into_the_dtype_of_the_scores(dtype: ir.DataType):
    content = _mask_model(dtype=dtype)
    assert float_masks(content, ["first", "second"])
    first, second = _masks(content).values()
    assert first is second
    assert (first.dtype, list(first.shape)) == (dtype, [3, 3])
    assert [node.op_type for node in content.graph] == ["Where", "MoHAttention", "MoHAttention"]


def test_only_nodes_that_are_named_are_changed():
    content = _mask_model()
    assert float_masks(content, ["second"])
    masks = _masks(content)
    assert masks["first"].dtype == ir.DataType.BOOL
    assert masks["second"].dtype == ir.DataType.FLOAT


def test_router_without_routed_heads_is_passed_over():
    """As in MoH-DiT: its first input, the logits of routed heads, is left out."""
    content = _mask_model()
    shared, gates = value("shared", [2, 3, 4]), value("of_shared", [2, 3, 4])
    router = ir.Node("moh", "MoHRouter", [None, shared], outputs=[gates], name="router")
    content.graph.inputs.append(shared)
    content.graph.append(router)
    assert float_masks(content, ["router", "second"])
    assert _masks(content)["second"].dtype == ir.DataType.FLOAT


def test_a_float_mask_stays_as_it_is():
    content = _mask_model(ir.DataType.FLOAT)
    before = ir.to_proto(content).SerializeToString()
    assert not float_masks(content, ["first", "second"])
    assert ir.to_proto(content).SerializeToString() == before


def test_the_same_keys_are_hidden():
    """With a query that sees none."""
    rng = np.random.default_rng(2)
    feed = {
        "x": rng.standard_normal((2, 3, 8), np.float32),
        "gates": rng.random((2, 3, 4), np.float32),
        "mask": np.array([[True, False, True], [False, False, False], [False, True, False]]),
    }
    found = []
    for change in (False, True):
        content = _mask_model()
        if change:
            float_masks(content, ["first", "second"])
        add_function_bodies(content, opset=20)
        session = onnxruntime.InferenceSession(ir.to_proto(content).SerializeToString())
        found.append(session.run(None, feed)[0])
    np.testing.assert_array_equal(*found)

from __future__ import annotations

import onnx_ir as ir
import pytest

from moh_deploy.graph.plugin_nodes import fuse_attention, why_not_fused
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


def test_queries_that_are_the_keys_are_not_fused():
    x, gates, y = value("x", [2, 3, 8]), value("gates", [2, 3, 4]), value("y", [2, 3, 8])
    node = attention(x, x, gates, y)
    found = why_not_fused(model([x, gates], [y], [node]), node)
    assert (found or "").startswith("its queries are its keys")


def test_inputs_that_attention_does_not_have_are_in_the_way():
    x, key, gates = value("x", [2, 3, 8]), value("key", [2, 3, 8]), value("gates", [2, 3, 4])
    lengths, y = value("lengths", [2], ir.DataType.INT64), value("y", [2, 3, 8])
    node = attention(x, key, gates, y)
    node.resize_inputs(6)
    content = model([x, key, gates, lengths], [y], [node])
    assert why_not_fused(content, node) is None
    node.replace_input_with(5, lengths)
    assert why_not_fused(content, node) is not None


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
    assert (reason is not None) == is_changed
    assert "GroupNormalization is another operator than in the model's opset 20" in (
        reason or "GroupNormalization is another operator than in the model's opset 20"
    )


def _causal(kv_len: int | str) -> ir.Node:
    """Return the Attention that a causal node over `seq` queries becomes."""
    x, key = value("x", [2, "seq", 8]), value("key", [2, kv_len, 8])
    gates, y = value("gates", [2, "seq", 4]), value("y", [2, "seq", 8])
    node = attention(x, key, gates, y)
    node.name = "causal"
    node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    content = model([x, key, gates], [y], [node])
    name = fuse_attention(content, ["causal"])["causal"]
    (found,) = [one for one in content.graph if one.name == name]
    return found


@pytest.mark.parametrize(("before", "after"), [(20, 23), (23, 23), (24, 24)])
def test_models_of_a_later_opset_keep_it(before: int, after: int):
    content, node = _case("MoHAttention", "plain_rank4")
    node.name = "attn"
    content.opset_imports[""] = before
    fuse_attention(content, ["attn"])
    assert content.opset_imports[""] == after
    assert [one.op_type for one in content.graph].count("Attention") == 1


def test_as_many_keys_as_queries_need_no_mask():
    found = _causal("seq")
    assert found.attributes["is_causal"].as_int() == 1
    assert len(found.inputs) == 3


@pytest.mark.parametrize("kv_len", ["total", 16])
def test_positions_among_other_keys_are_a_mask(kv_len: int | str):
    found = _causal(kv_len)
    assert found.attributes["is_causal"].as_int() == 0
    assert len(found.inputs) == 4

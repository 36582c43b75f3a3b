"""The function bodies of MoHAttention, and what ONNX says of a cache with room."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from packaging import version

from moh_deploy.ops import MOH_ATTENTION
from moh_deploy.ops.attention_function import AttentionVariant, function_body

VARIANTS = [
    AttentionVariant(rank, mask, is_causal, grouped, filled, ranges)
    for rank in (3, 4)
    for mask in (None, "bool", "float")
    for is_causal in (False, True)
    for grouped in (False, True)
    for filled in (False, True)
    for ranges in (False, True)
]


@pytest.mark.parametrize("variant", VARIANTS, ids=AttentionVariant.key)
def test_only_masked_variants_pay_for_masks(variant: AttentionVariant):
    ops = [node.op_type for node in function_body(variant, opset=18).node]
    by_position = variant.is_causal or variant.filled or variant.ranges
    hides = by_position or variant.mask is not None
    assert ("ReduceMax" in ops) == hides
    assert ("Range" in ops) == by_position
    assert ops.count("Less") == variant.filled + variant.ranges
    if not variant.filled:
        assert ("Add" in ops) == hides
    # Of gates; of the bias; of scores and values behind the filled keys.
    assert ops.count("Where") == 1 + (by_position or variant.mask == "bool") + 2 * variant.filled


@pytest.mark.parametrize("variant", VARIANTS, ids=AttentionVariant.key)
def test_attributes_are_references_never_numbers(variant: AttentionVariant):
    function = function_body(variant, opset=18)
    referenced = {a.ref_attr_name for node in function.node for a in node.attribute}
    assert {"scale", "q_num_heads", "kv_num_heads"} <= referenced
    assert list(function.attribute) == ["q_num_heads", "kv_num_heads", "scale", "is_causal"]


def _standard_attention(inputs: dict[str, np.ndarray], *, is_causal: int) -> np.ndarray:
    """ONNX's own Attention, by the onnx package."""
    names = ["Q", "K", "V", "attn_mask", "", "", "nonpad_kv_seqlen"]
    node = onnx.helper.make_node(
        "Attention",
        [name if name in inputs else "" for name in names],
        ["Y"],
        scale=0.5,
        is_causal=is_causal,
    )
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in inputs.items()
    ]
    output = onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, None)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "attention", infos, [output]),
        opset_imports=[onnx.helper.make_opsetid("", 24)],
    )
    return ReferenceEvaluator(model).run(None, inputs)[0]


@pytest.mark.skipif(
    version.parse(onnx.__version__) < version.parse("1.23"),
    reason="this onnx counts causal positions from the first key",
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [0, 1])
def test_a_cache_with_room_is_what_onnx_says_it_is(is_causal: int, masked: bool):
    """With its erratum, and with what ONNX needs: numbers behind the filled keys."""
    rng = np.random.default_rng(0)
    batch, heads, seq_len, kv_len, head_dim = 3, 4, 5, 9, 6
    inputs = {
        "Q": rng.standard_normal((batch, heads, seq_len, head_dim)).astype(np.float32),
        "K": rng.standard_normal((batch, 2, kv_len, head_dim)).astype(np.float32),
        "V": rng.standard_normal((batch, 2, kv_len, head_dim)).astype(np.float32),
        # The second is shorter than the queries: the first of them see nothing.
        "nonpad_kv_seqlen": np.array([9, 3, 6]),
    }
    mask = rng.random((batch, 1, seq_len, kv_len)) < 0.7 if masked else None
    attributes = {"q_num_heads": heads, "kv_num_heads": 2, "scale": 0.5, "is_causal": is_causal}
    gates = np.ones((batch, seq_len, heads))
    ours = MOH_ATTENTION.reference(
        [*(inputs[name] for name in "QKV"), gates, mask, inputs["nonpad_kv_seqlen"]], attributes
    )[0]
    standard = _standard_attention(
        inputs if mask is None else inputs | {"attn_mask": mask}, is_causal=is_causal
    )
    np.testing.assert_allclose(ours, standard, rtol=1e-5, atol=1e-6)

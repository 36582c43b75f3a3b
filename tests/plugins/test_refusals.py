"""What the kernels refuse, in a model that no shape rule has seen: what, got, expected."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from moh_deploy.ops import OPS
from tests.kernel_library import required_library
from tests.nightly import sampled
from tests.plugins.kernels import Kernels

Attributes = dict[str, int | float | str]
Shapes = dict[str, tuple[int, ...]]

ATTENTION: Attributes = {"q_num_heads": 6, "kv_num_heads": 2, "scale": 0.5, "is_causal": 0}
MERGED: Shapes = {"Q": (2, 5, 24), "K": (2, 9, 8), "V": (2, 9, 6), "gates": (2, 5, 6)}
SEPARATE: Shapes = {
    "Q": (2, 6, 5, 4),
    "K": (2, 2, 9, 4),
    "V": (2, 2, 9, 3),
    "gates": (2, 5, 6),
}
ROUTER: Attributes = {"top_k": 3, "num_shared_heads": 2, "gate_mode": "weighted"}
LOGITS: Shapes = {
    "routed_logits": (2, 5, 7),
    "shared_logits": (2, 5, 2),
    "stage_logits": (2, 5, 2),
}
TOKEN_CONV: Attributes = {
    "channels": 6,
    "height": 3,
    "width": 4,
    "activation": "none",
    "gated": 0,
}
IMAGE: Shapes = {"X": (2, 12, 6), "W": (6, 1, 3, 5), "bias": (6,), "input_bias": (6,)}
AGGREGATED: Attributes = {
    "num_heads": 3,
    "height": 3,
    "width": 4,
    "kernel_height": 3,
    "kernel_width": 5,
    "normalize": 1,
    "epsilon": 1e-12,
}
WINDOWED: Shapes = {
    "Q": (2, 12, 6),
    "K": (2, 12, 6),
    "V": (2, 12, 6),
    "pooled_K": (2, 5, 6),
    "pooled_V": (2, 5, 6),
    "gates": (2, 12, 3),
    "query_embedding": (3, 2),
    "query_scale": (3, 12),
    "window_bias": (3, 15),
    "pooled_bias": (3, 12, 5),
    "window_tokens": (3, 2, 15),
    "window_offset": (3, 15),
}
PROJECTION: Attributes = {"num_heads": 3}
QUERY: Shapes = {"X": (2, 5, 8), "W": (8, 12), "gates": (2, 5, 3), "bias": (12,)}
OUTPUT: Shapes = {"X": (2, 5, 12), "W": (12, 8), "gates": (2, 5, 3), "bias": (8,)}
NBITS: Attributes = {"num_heads": 3, "in_features": 40, "out_features": 12}
BLOCKS: Shapes = {
    "X": (2, 5, 40),
    "W": (12, 2, 16),
    "gates": (2, 5, 3),
    "scales": (12, 2),
    "bias": (12,),
}
PRODUCT: Attributes = {"in_features": 40, "out_features": 12, "bits": 8}
PRODUCT_BLOCKS: Shapes = {"X": (2, 5, 40), "W": (12, 2, 32), "scales": (12, 2)}
PACKED = {"W": onnx.TensorProto.UINT8}
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def _session(
    op: str, attributes: Attributes, ranks: dict[str, int], types: dict[str, int]
) -> ort.InferenceSession:
    """A node without function body, of inputs whose sizes are unknown."""
    names = [given.name if given.name in ranks else "" for given in OPS[op].inputs]
    node = make_node(op, names, ["out"], domain="moh", name="node", **attributes)
    inputs = [
        make_tensor_value_info(name, types.get(name, FLOAT), [None] * rank)
        for name, rank in ranks.items()
    ]
    output = make_tensor_value_info("out", FLOAT, None)
    opsets = [make_opsetid("", 18), make_opsetid("moh", 1)]
    model = make_model(
        make_graph([node], op, inputs, [output]), opset_imports=opsets, ir_version=10
    )
    return Kernels(required_library(), "baseline").session(model)


def _run(
    op: str,
    attributes: Attributes,
    shapes: Shapes,
    types: dict[str, int] | None = None,
    *,
    drawn: bool = False,
) -> np.ndarray:
    """Run the node on ones, or on drawn numbers."""
    types = types or {}
    ranks = {name: len(shape) for name, shape in shapes.items()}
    fill = np.random.default_rng(0).standard_normal if drawn else np.ones
    arrays = {
        name: fill(shape).astype(onnx.helper.tensor_dtype_to_np_dtype(types.get(name, FLOAT)))
        for name, shape in shapes.items()
    }
    return _session(op, attributes, ranks, types).run(None, arrays)[0]


def test_sizes_that_fit_are_accepted():
    assert _run("MoHAttention", ATTENTION, MERGED).shape == (2, 5, 18)
    assert _run("MoHAttention", ATTENTION, SEPARATE).shape == (2, 6, 5, 3)
    assert _run("MoHRouter", ROUTER, LOGITS).shape == (2, 5, 9)
    assert _run("MoHTokenConv", TOKEN_CONV, IMAGE).shape == (2, 12, 6)
    assert _run("MoHAggregatedAttention", AGGREGATED, WINDOWED).shape == (2, 12, 6)
    assert _run("MoHQueryProjection", PROJECTION, QUERY).shape == (2, 5, 12)
    assert _run("MoHOutputProjection", PROJECTION, OUTPUT).shape == (2, 5, 8)
    assert _run("MoHQueryProjectionNBits", NBITS, BLOCKS, PACKED).shape == (2, 5, 12)
    assert _run("MoHMatMulNBits", PRODUCT, PRODUCT_BLOCKS, PACKED).shape == (2, 5, 12)


@sampled(4)
@pytest.mark.parametrize(
    ("sizes", "change", "message"),
    [
        (MERGED, {"gates": (2, 5, 5)}, r"gates is \[2, 5, 5\]; expected \[2, 5, 6\]"),
        (MERGED, {"gates": (2, 6, 5)}, r"gates is \[2, 6, 5\]; expected \[2, 5, 6\]"),
        (MERGED, {"gates": (1, 5, 6)}, r"gates is \[1, 5, 6\]; expected \[2, 5, 6\]"),
        (MERGED, {"gates": (60,)}, r"gates is \[60\]; expected \[2, 5, 6\]"),
        (MERGED, {"Q": (2, 5, 25)}, r"Q is \[2, 5, 25\]; expected .* with 6 heads"),
        (MERGED, {"Q": (5, 24)}, r"Q is \[5, 24\]; expected \[batch, tokens, heads \* dim\]"),
        (MERGED, {"K": (2, 9, 9)}, r"K is \[2, 9, 9\]; expected .* with 2 heads"),
        (MERGED, {"K": (2, 9, 10)}, r"K \[2, 9, 10\] .*; expected .* one head size"),
        (MERGED, {"V": (2, 9, 7)}, r"V is \[2, 9, 7\]; expected .* with 2 heads"),
        (MERGED, {"V": (2, 8, 6)}, r"V \[2, 8, 6\]; expected .* K and V of one length"),
        (MERGED, {"V": (3, 9, 6)}, r"V \[3, 9, 6\]; expected one rank and batch size"),
        (MERGED, {"K": (2, 2, 9, 4)}, r"K \[2, 2, 9, 4\] .*; expected one rank"),
        (SEPARATE, {"Q": (2, 5, 6, 4)}, r"Q is \[2, 5, 6, 4\]; expected .* with 6 heads"),
        (SEPARATE, {"K": (2, 6, 9, 4)}, r"K is \[2, 6, 9, 4\]; expected .* with 2 heads"),
        (SEPARATE, {"K": (2, 2, 9, 5)}, r"K \[2, 2, 9, 5\] .*; expected .* one head size"),
        (SEPARATE, {"V": (1, 2, 9, 3)}, r"V \[1, 2, 9, 3\]; expected one rank and batch size"),
        (MERGED, {"attn_mask": (5, 8)}, r"attn_mask is \[5, 8\]; .* to \[2, 6, 5, 9\]"),
        (MERGED, {"attn_mask": (2, 1, 9)}, r"attn_mask is \[2, 1, 9\]; .* to \[2, 6, 5, 9\]"),
        (MERGED, {"attn_mask": (1, 2, 6, 5, 9)}, r"attn_mask is \[1, 2, .*; expected rank 1 to 4"),
        (MERGED, {"attn_mask": ()}, r"attn_mask is \[\]; expected rank 1 to 4"),
        (MERGED, {"attn_mask": (0,)}, r"attn_mask is \[0\]; expected rank 1 to 4"),
    ],
)
def test_attention_refuses_sizes_that_do_not_fit(sizes: Shapes, change: Shapes, message: str):
    with pytest.raises(Exception, match=f"MoHAttention: .*{message}"):
        _run("MoHAttention", ATTENTION, sizes | change)


@pytest.mark.parametrize("name", ["UINT8", "INT8", "INT32", "INT64", "DOUBLE"])
def test_attention_refuses_masks_of_other_types(name: str):
    element = getattr(onnx.TensorProto, name)
    message = f"attn_mask has ONNX element type {element}; expected bool, float32, float16 or bf"
    with pytest.raises(Exception, match=message):
        _run("MoHAttention", ATTENTION, MERGED | {"attn_mask": (5, 9)}, {"attn_mask": element})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_num_heads": 4}, "q_num_heads is 6 and kv_num_heads 4; expected the first to be a"),
        ({"kv_num_heads": 0}, "kv_num_heads is 0; expected at least 1"),
        ({"q_num_heads": -6}, "q_num_heads is -6; expected at least 1"),
        ({"is_causal": 2}, "is_causal is 2; expected 0 or 1"),
    ],
)
def test_attention_refuses_heads_that_do_not_divide(change: Attributes, message: str):
    with pytest.raises(Exception, match=message):
        _run("MoHAttention", ATTENTION | change, MERGED)


@pytest.mark.parametrize("name", ["q_num_heads", "kv_num_heads", "scale"])
def test_attention_refuses_a_node_without_a_required_attribute(name: str):
    attributes = {key: value for key, value in ATTENTION.items() if key != name}
    with pytest.raises(Exception, match=name):
        _run("MoHAttention", attributes, MERGED)


@pytest.mark.parametrize("name", ["Q", "K", "V", "gates"])
def test_attention_refuses_inputs_of_different_types(name: str):
    # ONNX Runtime finds no kernel for them.
    with pytest.raises(Exception, match="MoHAttention"):
        _run("MoHAttention", ATTENTION, MERGED, {name: onnx.TensorProto.FLOAT16})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routed_logits": (5, 7)}, r"routed_logits is \[5, 7\]; expected \[batch, tokens, heads"),
        ({"shared_logits": (2, 4, 2)}, r"shared_logits is \[2, 4, 2\]; expected .* one batch"),
        ({"stage_logits": (1, 5, 2)}, r"stage_logits is \[1, 5, 2\]; expected .* one batch"),
        ({"shared_logits": (2, 5, 3)}, r"shared_logits is \[2, 5, 3\]; expected num_shared_heads"),
        ({"stage_logits": (2, 5, 3)}, r"stage_logits is \[2, 5, 3\]; expected 2 as its last"),
        ({"routed_logits": (2, 5, 2)}, "top_k is 3; expected 1 to 2"),
    ],
)
def test_router_refuses_sizes_that_do_not_fit(change: Shapes, message: str):
    with pytest.raises(Exception, match=f"MoHRouter: {message}"):
        _run("MoHRouter", ROUTER, LOGITS | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 8}, "top_k is 8; expected 1 to 7"),
        ({"top_k": 0}, "top_k is 0; expected 1 to 7"),
        ({"top_k": -1}, "top_k is -1; expected 0 or more"),
        ({"gate_mode": "softmax"}, "gate_mode is 'softmax'; expected weighted or mask"),
        ({"num_shared_heads": -1}, "num_shared_heads is -1; expected 0 or more"),
        ({"num_shared_heads": 3}, r"shared_logits is \[2, 5, 2\]; expected num_shared_heads, 3"),
    ],
)
def test_router_refuses_attributes_that_do_not_fit(change: Attributes, message: str):
    with pytest.raises(Exception, match=message):
        _run("MoHRouter", ROUTER | change, LOGITS)


def test_router_without_routed_logits_refuses_a_choice():
    shapes = {name: shape for name, shape in LOGITS.items() if name != "routed_logits"}
    assert _run("MoHRouter", ROUTER | {"top_k": 0}, shapes).shape == (2, 5, 2)
    with pytest.raises(Exception, match="top_k is 3"):
        _run("MoHRouter", ROUTER, shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": (2, 11, 6)}, r"X is \[2, 11, 6\]; expected \[batch, 12, 6\]: height 3, width 4"),
        ({"X": (2, 12, 12)}, r"X is \[2, 12, 12\]; expected \[batch, 12, 6\]"),
        ({"X": (12, 6)}, r"X is \[12, 6\]; expected \[batch, 12, 6\]"),
        ({"W": (5, 1, 3, 3)}, r"W is \[5, 1, 3, 3\]; expected \[6, 1, kernel height"),
        ({"W": (6, 6, 3, 3)}, r"W is \[6, 6, 3, 3\]; expected \[6, 1, kernel height"),
        ({"W": (6, 3, 3)}, r"W is \[6, 3, 3\]; expected \[6, 1, kernel height"),
        ({"W": (6, 1, 3, 2)}, r"W is \[6, 1, 3, 2\]; expected a kernel of odd height"),
        ({"W": (6, 1, 0, 3)}, r"W is \[6, 1, 0, 3\]; expected a kernel of odd height"),
        ({"bias": (5,)}, r"bias is \[5\]; expected \[6\]"),
        ({"input_bias": (12,)}, r"input_bias is \[12\]; expected \[6\]"),
    ],
)
def test_token_conv_refuses_sizes_that_do_not_fit(change: Shapes, message: str):
    with pytest.raises(Exception, match=f"MoHTokenConv: {message}"):
        _run("MoHTokenConv", TOKEN_CONV, IMAGE | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height is 0; expected at least 1"),
        ({"width": -4}, "width is -4; expected at least 1"),
        ({"channels": 2**31}, r"channels is 2147483648; expected up to 2\^30"),
        ({"activation": "relu"}, "activation is 'relu'; expected none or gelu"),
        ({"gated": 2}, "gated is 2; expected 0 or 1"),
        ({"gated": 1}, r"expected \[batch, 12, 12\]: .* channels 6 and their gates"),
    ],
)
def test_token_conv_refuses_attributes_that_do_not_fit(change: Attributes, message: str):
    with pytest.raises(Exception, match=message):
        _run("MoHTokenConv", TOKEN_CONV | change, IMAGE)


@pytest.mark.parametrize("name", ["channels", "height", "width"])
def test_token_conv_refuses_a_node_without_a_required_attribute(name: str):
    attributes = {key: value for key, value in TOKEN_CONV.items() if key != name}
    with pytest.raises(Exception, match=name):
        _run("MoHTokenConv", attributes, IMAGE)


@sampled(4)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Q": (2, 11, 6)}, r"Q is \[2, 11, 6\]; expected .* 12, .* with 3 heads, .* 3 x 4"),
        ({"Q": (2, 12, 7)}, r"Q is \[2, 12, 7\]; expected .* with 3 heads"),
        ({"Q": (12, 6)}, r"Q is \[12, 6\]; expected \[batch, 12, heads \* dim\]"),
        ({"K": (2, 5, 6)}, r"K is \[2, 5, 6\]; expected \[2, 12, 6\]"),
        ({"V": (2, 12, 3)}, r"V is \[2, 12, 3\]; expected \[2, 12, 6\]"),
        ({"pooled_K": (2, 0, 6)}, r"pooled_K is \[2, 0, 6\]; expected .* with at least one token"),
        ({"pooled_K": (5, 6)}, r"pooled_K is \[5, 6\]; expected \[batch, pooled"),
        ({"pooled_K": (1, 5, 6)}, r"pooled_K is \[1, 5, 6\]; expected \[2, 5, 6\]"),
        ({"pooled_V": (2, 4, 6)}, r"pooled_V is \[2, 4, 6\]; expected \[2, 5, 6\]"),
        ({"gates": (2, 3, 12)}, r"gates is \[2, 3, 12\]; expected \[2, 12, 3\]"),
        ({"query_embedding": (3, 1, 2)}, r"query_embedding is .*; expected \[3, 2\]"),
        ({"query_scale": (3, 1)}, r"query_scale is \[3, 1\]; expected \[3, 12\]"),
        ({"window_bias": (3, 9)}, r"window_bias is \[3, 9\]; expected \[3, 15\]"),
        ({"pooled_bias": (1, 12, 5)}, r"pooled_bias is \[1, 12, 5\]; expected \[3, 12, 5\]"),
        ({"window_tokens": (3, 15, 2)}, r"window_tokens is .*; expected \[3, 2, 15\]"),
        ({"window_offset": (45,)}, r"window_offset is \[45\]; expected \[3, 15\]"),
    ],
)
def test_aggregated_attention_refuses_sizes_that_do_not_fit(change: Shapes, message: str):
    with pytest.raises(Exception, match=f"MoHAggregatedAttention: {message}"):
        _run("MoHAggregatedAttention", AGGREGATED, WINDOWED | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0; expected at least 1"),
        ({"height": 2**31}, r"height is 2147483648; expected up to 2\^30"),
        ({"height": 2**20, "width": 2**20}, "image is 1048576 x 1048576 .*; expected up to"),
        ({"kernel_height": 4}, "kernel_height is 4; expected an odd number"),
        ({"kernel_width": -3}, "kernel_width is -3; expected at least 1"),
        ({"normalize": 2}, "normalize is 2; expected 0 or 1"),
        ({"epsilon": 0.0}, "epsilon is 0.0*; expected more than 0"),
        ({"epsilon": float("nan")}, "epsilon is .*nan; expected more than 0"),
        ({"kernel_width": 3}, r"window_bias is \[3, 15\]; expected \[3, 9\]"),
    ],
)
def test_aggregated_attention_refuses_attributes_that_do_not_fit(change: Attributes, message: str):
    with pytest.raises(Exception, match=message):
        _run("MoHAggregatedAttention", AGGREGATED | change, WINDOWED)


@pytest.mark.parametrize("name", ["num_heads", "height", "width", "kernel_height", "kernel_width"])
def test_aggregated_attention_refuses_a_node_without_a_required_attribute(name: str):
    attributes = {key: value for key, value in AGGREGATED.items() if key != name}
    with pytest.raises(Exception, match=name):
        _run("MoHAggregatedAttention", attributes, WINDOWED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": (5, 8)}, r"X is \[5, 8\] and W \[8, 12\]; expected \[batch, tokens, K\] and"),
        ({"X": (2, 5, 9)}, r"X is \[2, 5, 9\] and W \[8, 12\]; expected"),
        ({"W": (8, 3, 4)}, r"X is \[2, 5, 8\] and W \[8, 3, 4\]; expected"),
        ({"W": (8, 13)}, r"W is \[8, 13\]; expected a multiple of its 3 heads as .* columns"),
        ({"gates": (2, 5, 4)}, r"gates is \[2, 5, 4\]; expected \[2, 5, 3\]"),
        ({"gates": (1, 5, 3)}, r"gates is \[1, 5, 3\]; expected \[2, 5, 3\]"),
        ({"bias": (8,)}, r"bias is \[8\]; expected \[12\]"),
        ({"bias": (1, 12)}, r"bias is \[1, 12\]; expected \[12\]"),
    ],
)
def test_query_projection_refuses_sizes_that_do_not_fit(change: Shapes, message: str):
    with pytest.raises(Exception, match=f"MoHQueryProjection: {message}"):
        _run("MoHQueryProjection", PROJECTION, QUERY | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": (12, 9), "bias": (8,)}, r"bias is \[8\]; expected \[9\]"),
        ({"X": (2, 5, 13), "W": (13, 8)}, r"W is \[13, 8\]; expected a multiple .* of rows"),
        ({"X": (12,)}, r"X is \[12\] and W \[12, 8\]; expected \[batch, tokens, K\]"),
    ],
)
def test_output_projection_refuses_sizes_that_do_not_fit(change: Shapes, message: str):
    with pytest.raises(Exception, match=f"MoHOutputProjection: {message}"):
        _run("MoHOutputProjection", PROJECTION, OUTPUT | change)


@pytest.mark.parametrize("op", ["MoHQueryProjection", "MoHOutputProjection"])
def test_projections_refuse_heads_that_cannot_be(op: str):
    with pytest.raises(Exception, match="num_heads is 0; expected at least 1"):
        _run(op, {"num_heads": 0}, QUERY)
    with pytest.raises(Exception, match="num_heads"):
        _run(op, {}, QUERY)


# Nothing to compute is no error.


@pytest.mark.parametrize(
    ("op", "shapes", "change", "shape"),
    [
        ("MoHQueryProjection", QUERY, {"X": (2, 0, 8), "gates": (2, 0, 3)}, (2, 0, 12)),
        ("MoHOutputProjection", OUTPUT, {"X": (0, 5, 12), "gates": (0, 5, 3)}, (0, 5, 8)),
        ("MoHQueryProjection", QUERY, {"W": (8, 0), "bias": (0,)}, (2, 5, 0)),
        ("MoHOutputProjection", OUTPUT, {"W": (12, 0), "bias": (0,)}, (2, 5, 0)),
    ],
)
def test_projection_of_nothing_is_empty(op: str, shapes: Shapes, change: Shapes, shape):
    assert _run(op, PROJECTION, shapes | change).shape == shape


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("MoHQueryProjection", {**QUERY, "X": (2, 5, 0), "W": (0, 12)}),
        ("MoHOutputProjection", {**OUTPUT, "X": (2, 5, 0), "W": (0, 8)}),
    ],
)
def test_projection_of_no_feature_is_the_bias(op: str, shapes: Shapes):
    np.testing.assert_array_equal(_run(op, PROJECTION, shapes), 1)


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"Q": (2, 0, 24), "gates": (2, 0, 6)}, (2, 0, 18)),
        ({"Q": (0, 5, 24), "K": (0, 9, 8), "V": (0, 9, 6), "gates": (0, 5, 6)}, (0, 5, 18)),
        ({"V": (2, 9, 0)}, (2, 5, 0)),
    ],
)
def test_attention_of_nothing_is_empty(change: Shapes, shape: tuple[int, ...]):
    assert _run("MoHAttention", ATTENTION, MERGED | change).shape == shape


def _attend_filled(*lengths: int) -> np.ndarray:
    session = _session(
        "MoHAttention",
        ATTENTION,
        {name: len(shape) for name, shape in MERGED.items()} | {"nonpad_kv_seqlen": 1},
        {"nonpad_kv_seqlen": INT64},
    )
    arrays = {name: np.ones(shape, np.float32) for name, shape in MERGED.items()}
    return session.run(None, arrays | {"nonpad_kv_seqlen": np.array(lengths, np.int64)})[0]


def test_lengths_from_no_key_to_every_key_are_accepted():
    # Values are all 1, and so is their mean wherever a key is seen.
    np.testing.assert_array_equal(
        _attend_filled(0, 9), np.repeat([0.0, 1.0], 5 * 18).reshape(2, 5, 18)
    )


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ((9, 10), r"nonpad_kv_seqlen\[1\] is 10; expected 0 to 9, the keys that there are"),
        ((-1, 9), r"nonpad_kv_seqlen\[0\] is -1; expected 0 to 9"),
        ((2**32, 9), r"nonpad_kv_seqlen\[0\] is 4294967296; expected 0 to 9"),
        ((9, 9, 9), r"nonpad_kv_seqlen is \[3\]; expected \[2\]"),
    ],
)
def test_lengths_beyond_the_keys_are_refused(lengths: tuple[int, ...], message: str):
    with pytest.raises(Exception, match=message):
        _attend_filled(*lengths)


def test_lengths_of_another_type_are_refused():
    with pytest.raises(Exception, match="nonpad_kv_seqlen"):
        _run(
            "MoHAttention",
            ATTENTION,
            MERGED | {"nonpad_kv_seqlen": (2,)},
            {"nonpad_kv_seqlen": onnx.TensorProto.INT32},
        )


@pytest.mark.parametrize(("batch", "dim"), [(0, 6), (2, 0)])
def test_aggregated_attention_of_nothing_is_empty(batch: int, dim: int):
    image, pooled = (batch, 12, dim), (batch, 5, dim)
    shapes = {"Q": image, "K": image, "V": image, "pooled_K": pooled, "pooled_V": pooled}
    gates = {"gates": (batch, 12, 3)}
    assert _run("MoHAggregatedAttention", AGGREGATED, shapes | gates).shape == image


def test_attention_to_no_key_is_0():
    output = _run("MoHAttention", ATTENTION, MERGED | {"K": (2, 0, 8), "V": (2, 0, 6)})
    np.testing.assert_array_equal(output, np.zeros((2, 5, 18)))


def test_router_of_no_token_is_empty():
    shapes = {name: (2, 0, shape[2]) for name, shape in LOGITS.items()}
    assert _run("MoHRouter", ROUTER, shapes).shape == (2, 0, 9)


def test_token_conv_of_no_image_is_empty():
    assert _run("MoHTokenConv", TOKEN_CONV, IMAGE | {"X": (0, 12, 6)}).shape == (0, 12, 6)


def test_aggregated_attention_of_no_image_or_no_channel_is_empty():
    no_batch = {name: (0, *WINDOWED[name][1:]) for name in list(WINDOWED)[:6]}
    assert _run("MoHAggregatedAttention", AGGREGATED, WINDOWED | no_batch).shape == (0, 12, 6)
    hidden = {name: (*WINDOWED[name][:2], 0) for name in list(WINDOWED)[:5]}
    hidden |= {"query_embedding": (3, 0), "window_tokens": (3, 0, 15)}
    assert _run("MoHAggregatedAttention", AGGREGATED, WINDOWED | hidden).shape == (2, 12, 0)


def test_attribute_of_another_type_is_not_an_absent_one():
    with pytest.raises(Exception, match="is_causal"):
        _run("MoHAttention", {**ATTENTION, "is_causal": 1.0}, MERGED)


def test_attributes_with_a_default_may_be_absent():
    required = {name: ATTENTION[name] for name in ("q_num_heads", "kv_num_heads", "scale")}
    _assert_default("MoHAttention", required, MERGED, "is_causal", 0, other=1)
    only_routed = {"routed_logits": LOGITS["routed_logits"]}
    _assert_default("MoHRouter", {"top_k": 3}, only_routed, "num_shared_heads", 0)
    _assert_default("MoHRouter", {"top_k": 3}, only_routed, "gate_mode", "weighted", other="mask")


def _assert_default(
    op: str,
    required: Attributes,
    shapes: Shapes,
    name: str,
    default: int | str,
    *,
    other: int | str | None = None,
) -> None:
    """Compare a run without the attribute with runs with it: another value is seen."""
    absent = _run(op, required, shapes, drawn=True)
    given = _run(op, {**required, name: default}, shapes, drawn=True)
    np.testing.assert_array_equal(absent, given)
    if other is not None:
        changed = _run(op, {**required, name: other}, shapes, drawn=True)
        assert not np.array_equal(absent, changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": (5, 40)}, r"X is \[5, 40\]; expected \[batch, tokens, 40\]"),
        ({"X": (2, 5, 32)}, r"X is \[2, 5, 32\]; expected \[batch, tokens, 40\]"),
        ({"W": (12, 1, 16)}, r"W is \[12, 1, 16\]; expected \[12, 2, 16\]"),
        ({"W": (12, 2, 32)}, r"W is \[12, 2, 32\]; expected \[12, 2, 16\]"),
        ({"gates": (2, 5, 4)}, r"gates is \[2, 5, 4\]; expected \[2, 5, 3\]"),
        ({"scales": (12, 3)}, r"scales is \[12, 3\]; expected \[12, 2\]"),
        ({"bias": (40,)}, r"bias is \[40\]; expected \[12\]"),
    ],
)
def test_projection_of_4_bits_refuses_sizes_that_do_not_fit(change: Shapes, message: str):
    with pytest.raises(Exception, match=f"MoHQueryProjectionNBits: {message}"):
        _run("MoHQueryProjectionNBits", NBITS, BLOCKS | change, PACKED)


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("MoHQueryProjectionNBits", {"num_heads": 5}, "out_features is 12; .* of its 5 heads"),
        ("MoHOutputProjectionNBits", {"num_heads": 3}, "in_features is 40; .* of its 3 heads"),
        ("MoHQueryProjectionNBits", {"in_features": 0}, "in_features is 0; expected at least 1"),
    ],
)
def test_projection_of_4_bits_refuses_attributes_that_do_not_fit(
    op: str, change: Attributes, message: str
):
    with pytest.raises(Exception, match=message):
        _run(op, NBITS | change, BLOCKS, PACKED)


@sampled(4)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": (40,)}, r"X is \[40\]; expected \[\.\.\., tokens, 40\]"),
        ({"X": (2, 5, 32)}, r"X is \[2, 5, 32\]; expected \[\.\.\., tokens, 40\]"),
        ({"W": (12, 2, 16)}, r"W is \[12, 2, 16\]; expected \[12, 2, 32\]"),
        ({"scales": (12, 3)}, r"scales is \[12, 3\]; expected \[12, 2\]"),
    ],
)
def test_product_of_few_bits_refuses_sizes_that_do_not_fit(change: Shapes, message: str):
    with pytest.raises(Exception, match=f"MoHMatMulNBits: {message}"):
        _run("MoHMatMulNBits", PRODUCT, PRODUCT_BLOCKS | change, PACKED)


def test_product_of_few_bits_refuses_other_numbers_of_bits():
    with pytest.raises(Exception, match="bits is 2; expected 4 or 8"):
        _run("MoHMatMulNBits", PRODUCT | {"bits": 2}, PRODUCT_BLOCKS, PACKED)

"""What the kernels refuse, in a model that no shape rule has seen: what, got, expected."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from moh_deploy.ops import OPS
from tests.kernel_library import required_library
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
NO_IMAGE: Shapes = {name: (0, *WINDOWED[name][1:]) for name in list(WINDOWED)[:6]}
NO_CHANNEL: Shapes = {name: (*WINDOWED[name][:2], 0) for name in list(WINDOWED)[:5]} | {
    "query_embedding": (3, 0),
    "window_tokens": (3, 0, 15),
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


# Of each op the attributes and sizes of a node that is accepted, and the shape of its output.
NODES: dict[str, tuple[Attributes, Shapes, tuple[int, ...]]] = {
    "MoHAttention": (ATTENTION, MERGED, (2, 5, 18)),
    "MoHRouter": (ROUTER, LOGITS, (2, 5, 9)),
    "MoHTokenConv": (TOKEN_CONV, IMAGE, (2, 12, 6)),
    "MoHAggregatedAttention": (AGGREGATED, WINDOWED, (2, 12, 6)),
    "MoHQueryProjection": (PROJECTION, QUERY, (2, 5, 12)),
    "MoHOutputProjection": (PROJECTION, OUTPUT, (2, 5, 8)),
    "MoHQueryProjectionNBits": (NBITS, BLOCKS, (2, 5, 12)),
    "MoHOutputProjectionNBits": (
        NBITS | {"num_heads": 4},
        BLOCKS | {"gates": (2, 5, 4)},
        (2, 5, 12),
    ),
    "MoHMatMulNBits": (PRODUCT, PRODUCT_BLOCKS, (2, 5, 12)),
}
REQUIRED = {
    "MoHAttention": ("q_num_heads", "kv_num_heads", "scale"),
    "MoHTokenConv": ("channels", "height", "width"),
    "MoHAggregatedAttention": ("num_heads", "height", "width", "kernel_height", "kernel_width"),
    "MoHQueryProjection": ("num_heads",),
    "MoHOutputProjection": ("num_heads",),
}
# Of each op another attribute or size, and what is said of it.
REFUSED: dict[str, list[tuple[dict, str]]] = {
    "MoHAttention": [
        ({"gates": (2, 5, 5)}, r"gates is \[2, 5, 5\]; expected \[2, 5, 6\]"),
        ({"gates": (2, 6, 5)}, r"gates is \[2, 6, 5\]; expected \[2, 5, 6\]"),
        ({"gates": (1, 5, 6)}, r"gates is \[1, 5, 6\]; expected \[2, 5, 6\]"),
        ({"gates": (60,)}, r"gates is \[60\]; expected \[2, 5, 6\]"),
        ({"Q": (2, 5, 25)}, r"Q is \[2, 5, 25\]; expected .* with 6 heads"),
        ({"Q": (5, 24)}, r"Q is \[5, 24\]; expected \[batch, tokens, heads \* dim\]"),
        ({"K": (2, 9, 9)}, r"K is \[2, 9, 9\]; expected .* with 2 heads"),
        ({"K": (2, 9, 10)}, r"K \[2, 9, 10\] .*; expected .* one head size"),
        ({"V": (2, 9, 7)}, r"V is \[2, 9, 7\]; expected .* with 2 heads"),
        ({"V": (2, 8, 6)}, r"V \[2, 8, 6\]; expected .* K and V of one length"),
        ({"V": (3, 9, 6)}, r"V \[3, 9, 6\]; expected one rank and batch size"),
        ({"K": (2, 2, 9, 4)}, r"K \[2, 2, 9, 4\] .*; expected one rank"),
        ({"attn_mask": (5, 8)}, r"attn_mask is \[5, 8\]; .* to \[2, 6, 5, 9\]"),
        ({"attn_mask": (2, 1, 9)}, r"attn_mask is \[2, 1, 9\]; .* to \[2, 6, 5, 9\]"),
        ({"attn_mask": (1, 2, 6, 5, 9)}, r"attn_mask is \[1, 2, .*; expected rank 1 to 4"),
        ({"attn_mask": ()}, r"attn_mask is \[\]; expected rank 1 to 4"),
        ({"attn_mask": (0,)}, r"attn_mask is \[0\]; expected rank 1 to 4"),
        # The heads apart.
        (SEPARATE | {"Q": (2, 5, 6, 4)}, r"Q is \[2, 5, 6, 4\]; expected .* with 6 heads"),
        (SEPARATE | {"K": (2, 6, 9, 4)}, r"K is \[2, 6, 9, 4\]; expected .* with 2 heads"),
        (SEPARATE | {"K": (2, 2, 9, 5)}, r"K \[2, 2, 9, 5\] .*; expected .* one head size"),
        (SEPARATE | {"V": (1, 2, 9, 3)}, r"V \[1, 2, 9, 3\]; expected one rank and batch size"),
        ({"kv_num_heads": 4}, "q_num_heads is 6 and kv_num_heads 4; expected the first to be a"),
        ({"kv_num_heads": 0}, "kv_num_heads is 0; expected at least 1"),
        ({"q_num_heads": -6}, "q_num_heads is -6; expected at least 1"),
        ({"is_causal": 2}, "is_causal is 2; expected 0 or 1"),
    ],
    "MoHRouter": [
        ({"routed_logits": (5, 7)}, r"routed_logits is \[5, 7\]; expected \[batch, tokens, heads"),
        ({"shared_logits": (2, 4, 2)}, r"shared_logits is \[2, 4, 2\]; expected .* one batch"),
        ({"stage_logits": (1, 5, 2)}, r"stage_logits is \[1, 5, 2\]; expected .* one batch"),
        ({"shared_logits": (2, 5, 3)}, r"shared_logits is \[2, 5, 3\]; expected num_shared_heads"),
        ({"stage_logits": (2, 5, 3)}, r"stage_logits is \[2, 5, 3\]; expected 2 as its last"),
        ({"routed_logits": (2, 5, 2)}, "top_k is 3; expected 1 to 2"),
        ({"top_k": 8}, "top_k is 8; expected 1 to 7"),
        ({"top_k": 0}, "top_k is 0; expected 1 to 7"),
        ({"top_k": -1}, "top_k is -1; expected 0 or more"),
        ({"gate_mode": "softmax"}, "gate_mode is 'softmax'; expected weighted or mask"),
        ({"num_shared_heads": -1}, "num_shared_heads is -1; expected 0 or more"),
        ({"num_shared_heads": 3}, r"shared_logits is \[2, 5, 2\]; expected num_shared_heads, 3"),
    ],
    "MoHTokenConv": [
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
        ({"height": 0}, "height is 0; expected at least 1"),
        ({"width": -4}, "width is -4; expected at least 1"),
        ({"channels": 2**31}, r"channels is 2147483648; expected up to 2\^30"),
        ({"activation": "relu"}, "activation is 'relu'; expected none or gelu"),
        ({"gated": 2}, "gated is 2; expected 0 or 1"),
        ({"gated": 1}, r"expected \[batch, 12, 12\]: .* channels 6 and their gates"),
    ],
    "MoHAggregatedAttention": [
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
    "MoHQueryProjection": [
        ({"num_heads": 0}, "num_heads is 0; expected at least 1"),
        ({"X": (5, 8)}, r"X is \[5, 8\] and W \[8, 12\]; expected \[batch, tokens, K\] and"),
        ({"X": (2, 5, 9)}, r"X is \[2, 5, 9\] and W \[8, 12\]; expected"),
        ({"W": (8, 3, 4)}, r"X is \[2, 5, 8\] and W \[8, 3, 4\]; expected"),
        ({"W": (8, 13)}, r"W is \[8, 13\]; expected a multiple of its 3 heads as .* columns"),
        ({"gates": (2, 5, 4)}, r"gates is \[2, 5, 4\]; expected \[2, 5, 3\]"),
        ({"gates": (1, 5, 3)}, r"gates is \[1, 5, 3\]; expected \[2, 5, 3\]"),
        ({"bias": (8,)}, r"bias is \[8\]; expected \[12\]"),
        ({"bias": (1, 12)}, r"bias is \[1, 12\]; expected \[12\]"),
    ],
    "MoHOutputProjection": [
        ({"num_heads": 0}, "num_heads is 0; expected at least 1"),
        ({"W": (12, 9), "bias": (8,)}, r"bias is \[8\]; expected \[9\]"),
        ({"X": (2, 5, 13), "W": (13, 8)}, r"W is \[13, 8\]; expected a multiple .* of rows"),
        ({"X": (12,)}, r"X is \[12\] and W \[12, 8\]; expected \[batch, tokens, K\]"),
    ],
    "MoHQueryProjectionNBits": [
        ({"num_heads": 5}, "out_features is 12; .* of its 5 heads"),
        ({"in_features": 0}, "in_features is 0; expected at least 1"),
        ({"X": (5, 40)}, r"X is \[5, 40\]; expected \[batch, tokens, 40\]"),
        ({"X": (2, 5, 32)}, r"X is \[2, 5, 32\]; expected \[batch, tokens, 40\]"),
        ({"W": (12, 1, 16)}, r"W is \[12, 1, 16\]; expected \[12, 2, 16\]"),
        ({"W": (12, 2, 32)}, r"W is \[12, 2, 32\]; expected \[12, 2, 16\]"),
        ({"gates": (2, 5, 4)}, r"gates is \[2, 5, 4\]; expected \[2, 5, 3\]"),
        ({"scales": (12, 3)}, r"scales is \[12, 3\]; expected \[12, 2\]"),
        ({"bias": (40,)}, r"bias is \[40\]; expected \[12\]"),
    ],
    "MoHOutputProjectionNBits": [({"num_heads": 3}, "in_features is 40; .* of its 3 heads")],
    "MoHMatMulNBits": [
        ({"bits": 2}, "bits is 2; expected 4 or 8"),
        ({"X": (40,)}, r"X is \[40\]; expected \[\.\.\., tokens, 40\]"),
        ({"X": (2, 5, 32)}, r"X is \[2, 5, 32\]; expected \[\.\.\., tokens, 40\]"),
        ({"W": (12, 2, 16)}, r"W is \[12, 2, 16\]; expected \[12, 2, 32\]"),
        ({"scales": (12, 3)}, r"scales is \[12, 3\]; expected \[12, 2\]"),
    ],
}
# Nothing to compute is no error: of each op sizes, and the shape of the output.
NOTHING: list[tuple[str, Shapes, tuple[int, ...]]] = [
    ("MoHAttention", {"Q": (2, 0, 24), "gates": (2, 0, 6)}, (2, 0, 18)),
    (
        "MoHAttention",
        {"Q": (0, 5, 24), "K": (0, 9, 8), "V": (0, 9, 6), "gates": (0, 5, 6)},
        (0, 5, 18),
    ),
    ("MoHAttention", {"V": (2, 9, 0)}, (2, 5, 0)),
    ("MoHRouter", {name: (2, 0, shape[2]) for name, shape in LOGITS.items()}, (2, 0, 9)),
    ("MoHTokenConv", {"X": (0, 12, 6)}, (0, 12, 6)),
    ("MoHAggregatedAttention", NO_IMAGE, (0, 12, 6)),
    ("MoHAggregatedAttention", NO_CHANNEL, (2, 12, 0)),
    ("MoHQueryProjection", {"X": (2, 0, 8), "gates": (2, 0, 3)}, (2, 0, 12)),
    ("MoHQueryProjection", {"W": (8, 0), "bias": (0,)}, (2, 5, 0)),
    ("MoHOutputProjection", {"X": (0, 5, 12), "gates": (0, 5, 3)}, (0, 5, 8)),
    ("MoHOutputProjection", {"W": (12, 0), "bias": (0,)}, (2, 5, 0)),
]


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
    types = (PACKED if op.endswith("NBits") else {}) | (types or {})
    ranks = {name: len(shape) for name, shape in shapes.items()}
    fill = np.random.default_rng(0).standard_normal if drawn else np.ones
    arrays = {
        name: fill(shape).astype(onnx.helper.tensor_dtype_to_np_dtype(types.get(name, FLOAT)))
        for name, shape in shapes.items()
    }
    return _session(op, attributes, ranks, types).run(None, arrays)[0]


@pytest.mark.parametrize("op", NODES)
def test_sizes_that_fit_are_accepted(op: str):
    attributes, shapes, shape = NODES[op]
    assert _run(op, attributes, shapes).shape == shape


def test_heads_apart_are_accepted():
    assert _run("MoHAttention", ATTENTION, SEPARATE).shape == (2, 6, 5, 3)


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [(op, *refused) for op, table in REFUSED.items() for refused in table],
)
def test_what_does_not_fit_is_refused(op: str, change: dict, message: str):
    attributes, shapes, _ = NODES[op]
    sizes = {name: value for name, value in change.items() if isinstance(value, tuple)}
    others = {name: value for name, value in change.items() if name not in sizes}
    with pytest.raises(Exception, match=f"{op}.*{message}"):
        _run(op, attributes | others, shapes | sizes)


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, names in REQUIRED.items() for name in names]
)
def test_a_node_without_a_required_attribute_is_refused(op: str, name: str):
    attributes, shapes, _ = NODES[op]
    with pytest.raises(Exception, match=name):
        _run(op, {key: value for key, value in attributes.items() if key != name}, shapes)


@pytest.mark.parametrize(("op", "change", "shape"), NOTHING)
def test_output_of_nothing_is_empty(op: str, change: Shapes, shape: tuple[int, ...]):
    attributes, shapes, _ = NODES[op]
    assert _run(op, attributes, shapes | change).shape == shape


@pytest.mark.parametrize("name", ["UINT8", "INT8", "INT32", "INT64", "DOUBLE"])
def test_attention_refuses_masks_of_other_types(name: str):
    element = getattr(onnx.TensorProto, name)
    message = f"attn_mask has ONNX element type {element}; expected bool, float32, float16 or bf"
    with pytest.raises(Exception, match=message):
        _run("MoHAttention", ATTENTION, MERGED | {"attn_mask": (5, 9)}, {"attn_mask": element})


@pytest.mark.parametrize("name", ["Q", "K", "V", "gates"])
def test_attention_refuses_inputs_of_different_types(name: str):
    # ONNX Runtime finds no kernel for them.
    with pytest.raises(Exception, match="MoHAttention"):
        _run("MoHAttention", ATTENTION, MERGED, {name: onnx.TensorProto.FLOAT16})


def test_attention_to_no_key_is_0():
    output = _run("MoHAttention", ATTENTION, MERGED | {"K": (2, 0, 8), "V": (2, 0, 6)})
    np.testing.assert_array_equal(output, np.zeros((2, 5, 18)))


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


def test_router_without_routed_logits_refuses_a_choice():
    shapes = {name: shape for name, shape in LOGITS.items() if name != "routed_logits"}
    assert _run("MoHRouter", ROUTER | {"top_k": 0}, shapes).shape == (2, 5, 2)
    with pytest.raises(Exception, match="top_k is 3"):
        _run("MoHRouter", ROUTER, shapes)


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("MoHQueryProjection", {**QUERY, "X": (2, 5, 0), "W": (0, 12)}),
        ("MoHOutputProjection", {**OUTPUT, "X": (2, 5, 0), "W": (0, 8)}),
    ],
)
def test_projection_of_no_feature_is_the_bias(op: str, shapes: Shapes):
    np.testing.assert_array_equal(_run(op, PROJECTION, shapes), 1)


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

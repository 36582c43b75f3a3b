"""Bugs that the contract must catch.

Each is planted into the function bodies and has to fail at least one case.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case, find_mismatch
from tests.nightly import one_in, sampled
from tests.ops.cases import OP_CASES, named_case
from tests.ops.implementations import case_model, run_onnx_reference

Bug = Callable[[onnx.FunctionProto], None]


def _node(function: onnx.FunctionProto, output: str) -> onnx.NodeProto | None:
    return next((node for node in function.node if output in node.output), None)


def _knows(function: onnx.FunctionProto, values: tuple[str, ...]) -> bool:
    outputs = [name for node in function.node for name in node.output]
    return set(values) <= {*function.input, *outputs}


def _becomes(output: str, op_type: str, *inputs: str, **attributes: int) -> Bug:
    """The node that makes `output` turns into another one, in every body with these values."""

    def plant(function: onnx.FunctionProto) -> None:
        node = _node(function, output)
        if node is not None and _knows(function, inputs):
            node.CopyFrom(onnx.helper.make_node(op_type, inputs, [output], **attributes))

    return plant


def _reads(output: str, *inputs: str) -> Bug:
    """The node that makes `output` reads other values."""

    def plant(function: onnx.FunctionProto) -> None:
        node = _node(function, output)
        if node is not None and _knows(function, inputs):
            node.input[:] = inputs

    return plant


def _in_half_precision(value: str) -> Bug:
    """`value` loses the bits that float16 does not have."""

    def plant(function: onnx.FunctionProto) -> None:
        index = next((i for i, n in enumerate(function.node) if value in n.output), None)
        if index is None:
            return
        function.node[index].output[:] = [f"{value}_exact"]
        make = onnx.helper.make_node
        function.node.insert(index + 1, make("Cast", [f"{value}_exact"], [f"{value}_half"], to=10))
        function.node.insert(index + 2, make("Cast", [f"{value}_half"], [value], to=1))

    return plant


def _softmax_without_the_row_maximum(function: onnx.FunctionProto) -> None:
    index = next(i for i, node in enumerate(function.node) if node.op_type == "Softmax")
    (scores,), (weights,) = function.node[index].input, function.node[index].output
    make = onnx.helper.make_node
    function.node[index].CopyFrom(make("Div", ["exponentials", "total"], [weights]))
    function.node.insert(index, make("ReduceSum", ["exponentials", "last_axis"], ["total"]))
    function.node.insert(index, make("Exp", [scores], ["exponentials"]))


def _softmax_over_masked_logits(function: onnx.FunctionProto) -> None:
    """Unchosen logits become 0 and softmax runs last: 0 is not the neutral element of softmax."""
    if _node(function, "divisor") is None:
        return
    _becomes("probabilities", "Identity", "logits")(function)
    _reads("routed_gates", "all_closed", "chosen_heads", "chosen")(function)
    _node(function, "routed_gates").output[:] = ["kept_logits"]
    index = next(i for i, n in enumerate(function.node) if "kept_logits" in n.output)
    softmax = onnx.helper.make_node("Softmax", ["kept_logits"], ["routed_gates"], axis=-1)
    function.node.insert(index + 1, softmax)


def _choose_by_logit(function: onnx.FunctionProto) -> None:
    """Logits differ where float32 probabilities tie; mask mode shows it: a chosen gate is 1."""
    if _node(function, "divisor") is None:
        _reads("chosen", "logits", "top_k")(function)


def _swap_stage_weights(function: onnx.FunctionProto) -> None:
    node = _node(function, "shared_weight")
    if node is not None:
        node.output[:] = list(node.output)[::-1]


def _swap_shared_and_routed(function: onnx.FunctionProto) -> None:
    node = _node(function, "gates_float")
    node.input[:] = list(node.input)[::-1]


def _set_attribute(output: str, name: str, value: object) -> Bug:
    def plant(function: onnx.FunctionProto) -> None:
        node = _node(function, output)
        if node is not None:
            kept = [a for a in node.attribute if a.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return plant


def _padded_on_the_right(function: onnx.FunctionProto) -> None:
    """Two zeros behind each row and column instead of one on each side: for kernels of 3."""
    _set_attribute("convolved_image", "auto_pad", "NOTSET")(function)
    _set_attribute("convolved_image", "pads", [0, 0, 2, 2])(function)


def _biased_padding(function: onnx.FunctionProto) -> None:
    """The bias of the input as a bias of the convolution, as if there were no border."""
    if _node(function, "features") is None or not _knows(function, ("input_bias_float",)):
        return
    make = onnx.helper.make_node
    _becomes("features", "Identity", "unbiased")(function)
    channels = onnx.helper.make_node("Shape", ["weight"], ["channels"], start=0, end=1)
    index = next(i for i, n in enumerate(function.node) if "convolved" in n.output)
    function.node[index].output[:] = ["without"]
    steps = [
        channels,
        make("Constant", [], ["start"], value_ints=[0]),
        make("Constant", [], ["kernel_axes"], value_ints=[1, 2, 3]),
        make("Slice", ["input_bias_float", "start", "channels"], ["of_features"]),
        make("ReduceSum", ["weight", "kernel_axes"], ["sums"], keepdims=0),
        make("Mul", ["of_features", "sums"], ["addend"]),
        make("Add", ["without", "addend"], ["convolved"]),
    ]
    for step in reversed(steps):
        function.node.insert(index + 1, step)


def _reshape_instead_of_transpose(function: onnx.FunctionProto) -> None:
    index = next(i for i, node in enumerate(function.node) if "tokens_BCN" in node.output)
    make = onnx.helper.make_node
    function.node[index].CopyFrom(make("Reshape", ["tokens", "swapped"], ["tokens_BCN"]))
    function.node.insert(index, make("Gather", ["shape", "order"], ["swapped"]))
    function.node.insert(index, make("Constant", [], ["order"], value_ints=[0, 2, 1]))
    function.node.insert(index, make("Shape", ["tokens"], ["shape"]))


def _dilated(function: onnx.FunctionProto) -> None:
    _set_attribute("convolved_image", "dilations", [2, 2])(function)


def _gelu_by_sigmoid(function: onnx.FunctionProto) -> None:
    """gelu is about x * sigmoid(1.702 x)."""
    constant = _node(function, "sqrt_half")
    if constant is not None:
        constant.attribute[0].f = 1.702
        _becomes("share", "Sigmoid", "scaled")(function)


def _gelu_by_tanh(function: onnx.FunctionProto) -> None:
    """gelu is about x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    index = next((i for i, node in enumerate(function.node) if "erf" in node.output), None)
    if index is None:
        return
    make = onnx.helper.make_node
    function.node[index].CopyFrom(make("Tanh", ["tanh_argument"], ["erf"]))
    cubic = [
        make("Constant", [], ["cubic"], value_float=0.044715),
        make("Constant", [], ["factor"], value_float=(2 / np.pi) ** 0.5),
        make("Mul", ["convolved", "convolved"], ["square"]),
        make("Mul", ["square", "cubic"], ["share_of_cube"]),
        make("Mul", ["share_of_cube", "convolved"], ["cube"]),
        make("Add", ["convolved", "cube"], ["sum"]),
        make("Mul", ["sum", "factor"], ["tanh_argument"]),
    ]
    for node in reversed(cubic):
        function.node.insert(index, node)


def _swap_halves(function: onnx.FunctionProto) -> None:
    node = _node(function, "gate")
    if node is not None:
        node.output[:] = list(node.output)[::-1]


def _embedding_after_the_scale(function: onnx.FunctionProto) -> None:
    index = next(i for i, n in enumerate(function.node) if "score_query" in n.output)
    if _knows(function, ("embedding", "scale")):
        make = onnx.helper.make_node
        function.node[index].CopyFrom(make("Add", ["scaled", "embedding"], ["score_query"]))
        function.node.insert(index, make("Mul", ["query", "scale"], ["scaled"]))


def _softmax_apart(function: onnx.FunctionProto) -> None:
    """Window and pooled scores have a softmax each."""
    _becomes("softmax_window", "Softmax", "window_scores_BHNL", axis=-1)(function)
    _becomes("pooled_weights", "Softmax", "pooled_scores", axis=-1)(function)


def _reversed(output: str) -> Bug:
    def plant(function: onnx.FunctionProto) -> None:
        node = _node(function, output)
        node.input[:] = list(node.input)[::-1]

    return plant


def _places_by_column(function: onnx.FunctionProto) -> None:
    """Places of a square window are counted column by column."""
    starts = [n for n in function.node if n.output[0].startswith("start_")]
    corners = [tuple(n.attribute[0].ints) for n in starts]
    if max(corners) == max((column, row) for row, column in corners):
        for node, (row, column) in zip(starts, corners, strict=True):
            node.attribute[0].ints[:] = (column, row)


def _pooled_values_lost(function: onnx.FunctionProto) -> None:
    del _node(function, "heads").input[-1]


AGGREGATED_ATTENTION_BUGS: dict[str, Bug] = {
    "mul_instead_of_where": _becomes("gated", "Identity", "product"),
    "gate_closed_unless_positive": _becomes("closed", "LessOrEqual", "gate", "zero"),
    "gates_not_applied": _becomes("product", "Identity", "heads"),
    "query_not_normalized": _becomes("query", "Identity", "query_raw"),
    "key_not_normalized": _becomes("key", "Identity", "key_raw"),
    "pooled_key_not_normalized": _becomes("pooled_key", "Identity", "pooled_key_raw"),
    "query_divided_by_zero": _becomes("query_divisor", "Identity", "query_length"),
    "key_divided_by_zero": _becomes("key_divisor", "Identity", "key_length"),
    "pooled_key_divided_by_zero": _becomes("pooled_key_divisor", "Identity", "pooled_key_length"),
    "epsilon_added": _becomes("key_divisor", "Add", "key_length", "epsilon"),
    "embedding_ignored": _becomes("embedded_query", "Identity", "query"),
    "embedding_after_the_scale": _embedding_after_the_scale,
    "scale_ignored": _becomes("score_query", "Identity", "embedded_query"),
    "window_bias_ignored": _reads("place_bias", "inside", "zero", "minus_infinity"),
    "outside_takes_part": _becomes("place_bias", "Identity", "bias_HL"),
    "pooled_bias_ignored": _becomes("pooled_scores", "Identity", "pooled_products"),
    "softmax_apart": _softmax_apart,
    "softmax_without_the_row_maximum": _softmax_without_the_row_maximum,
    "window_scores_in_half_precision": _in_half_precision("place_scores"),
    "pooled_scores_in_half_precision": _in_half_precision("pooled_products"),
    "window_tokens_ignored": _becomes("steered_window", "Identity", "softmax_window"),
    "window_tokens_of_embedded_query": _reads("query_BHND", "embedded_query"),
    "window_tokens_of_raw_query": _reads("query_BHND", "query_raw"),
    "window_offset_ignored": _becomes("shifted_window", "Identity", "steered_window"),
    "scores_mirrored": _reversed("place_scores"),
    "places_by_column": _places_by_column,
    "values_beyond_the_edge": _set_attribute("value_padded", "mode", "edge"),
    "pooled_values_lost": _pooled_values_lost,
}

BUGS: dict[str, tuple[str, Bug]] = {
    **{
        f"aggregated_{name}": ("MoHAggregatedAttention", bug)
        for name, bug in AGGREGATED_ATTENTION_BUGS.items()
    },
    "mul_instead_of_where": ("MoHAttention", _becomes("gated", "Identity", "product")),
    "blind_queries_not_silenced": ("MoHAttention", _becomes("silent", "Identity", "closed")),
    "nan_gate_of_blind_query_lost": ("MoHAttention", _reads("gated", "silent", "zero", "product")),
    "gate_closed_unless_positive": (
        "MoHAttention",
        _becomes("closed", "LessOrEqual", "gate", "zero"),
    ),
    "gates_not_applied": ("MoHAttention", _becomes("product", "Identity", "heads_BHSD")),
    "scale_ignored": ("MoHAttention", _becomes("query", "Identity", "query_unscaled")),
    "causal_without_offset": (
        "MoHAttention",
        _reads("query_position", "first", "seq_len", "one"),
    ),
    "causal_hides_the_diagonal": (
        "MoHAttention",
        _becomes("in_reach", "Greater", "query_position_S1", "key_position"),
    ),
    "filled_lengths_ignored": ("MoHAttention", _reads("filled", "kv_len_1d", "inner_axes")),
    "filled_length_is_seen": (
        "MoHAttention",
        _becomes("is_filled", "LessOrEqual", "key_position", "filled"),
    ),
    "filled_causal_from_the_first_key": (
        "MoHAttention",
        _becomes("query_position_S1", "Identity", "query_index_S1"),
    ),
    "filled_causal_from_the_end_of_the_room": (
        "MoHAttention",
        _becomes("offset", "Sub", "kv_len", "seq_len"),
    ),
    "what_is_not_filled_reaches_scores": (
        "MoHAttention",
        _becomes("scores", "Add", "scores_BHST", "bias"),
    ),
    "what_is_not_filled_reaches_values": (
        "MoHAttention",
        _becomes("value_filled", "Identity", "value"),
    ),
    "causal_ignored_beside_a_mask": ("MoHAttention", _becomes("seen", "Identity", "attn_mask")),
    "bool_mask_inverted": (
        "MoHAttention",
        _reads("bias", "seen", "minus_infinity", "zero"),
    ),
    "additive_mask_ignored": ("MoHAttention", _becomes("scores", "Identity", "scores_BHST")),
    "softmax_over_queries": ("MoHAttention", _set_attribute("weights", "axis", -2)),
    "softmax_without_the_row_maximum": ("MoHAttention", _softmax_without_the_row_maximum),
    "scores_in_half_precision": ("MoHAttention", _in_half_precision("scores_BHST")),
    "merged_without_transpose": (
        "MoHAttention",
        _becomes("gated_BSHD", "Identity", "gated_typed"),
    ),
    "bias_ignored": ("MoHQueryProjection", _becomes("Q", "Identity", "product")),
    "output_bias_ignored": ("MoHOutputProjection", _becomes("Y", "Identity", "product")),
    "bias_subtracted": ("MoHQueryProjection", _becomes("Q", "Sub", "product", "bias")),
    "product_in_half_precision": ("MoHQueryProjection", _in_half_precision("product")),
    "output_product_in_half_precision": ("MoHOutputProjection", _in_half_precision("product")),
    "chosen_by_logit": ("MoHRouter", _choose_by_logit),
    "softmax_over_masked_logits": ("MoHRouter", _softmax_over_masked_logits),
    "not_renormalised": ("MoHRouter", _becomes("shares", "Identity", "chosen")),
    "not_times_top_k": ("MoHRouter", _becomes("unweighed", "Identity", "shares")),
    "not_times_num_shared": (
        "MoHRouter",
        _becomes("shared_unweighed", "Identity", "shared_probabilities"),
    ),
    "shared_and_routed_swapped": ("MoHRouter", _swap_shared_and_routed),
    "stage_weights_swapped": ("MoHRouter", _swap_stage_weights),
    "stage_not_times_two": (
        "MoHRouter",
        _becomes("stage_weights", "Identity", "stage_probabilities"),
    ),
    "smallest_heads_chosen": ("MoHRouter", _set_attribute("chosen", "largest", 0)),
    "conv_without_padding_on_the_left": (
        "MoHTokenConv",
        _padded_on_the_right,
    ),
    "conv_dilated": ("MoHTokenConv", _dilated),
    "conv_rows_are_columns": ("MoHTokenConv", _reads("image_shape", "same", "columns", "rows")),
    "conv_image_not_transposed": ("MoHTokenConv", _reshape_instead_of_transpose),
    "conv_bias_ignored": ("MoHTokenConv", _reads("convolved_image", "image", "weight")),
    "conv_input_bias_ignored": ("MoHTokenConv", _becomes("features", "Identity", "unbiased")),
    "conv_input_bias_outside_of_the_image": ("MoHTokenConv", _biased_padding),
    "conv_gelu_ignored": ("MoHTokenConv", _becomes("activated", "Identity", "convolved")),
    "conv_gelu_without_half": ("MoHTokenConv", _becomes("share", "Identity", "twice_share")),
    "conv_gelu_by_sigmoid": ("MoHTokenConv", _gelu_by_sigmoid),
    "conv_gelu_by_tanh": ("MoHTokenConv", _gelu_by_tanh),
    "conv_gate_ignored": ("MoHTokenConv", _becomes("gated_float", "Identity", "activated")),
    "conv_gate_before_activation": (
        "MoHTokenConv",
        _becomes("scaled", "Mul", "convolved", "gate"),
    ),
    "conv_halves_swapped": ("MoHTokenConv", _swap_halves),
    "conv_in_half_precision": ("MoHTokenConv", _in_half_precision("convolved")),
    "gates_are_probabilities": (
        "MoHRouter",
        _becomes("chosen_gates", "Identity", "chosen"),
    ),
}


@sampled(3)
@pytest.mark.parametrize("name", one_in(3, BUGS))
def test_contract_rejects_the_planted_bug(name: str):
    op, plant = BUGS[name]
    cases = [case for case in OP_CASES[op] if case.dtype == "float32"]
    assert any(_fails(case, plant) for case in cases), f"no case of {op} notices '{name}'"


def _fails(case: Case, plant: Bug) -> bool:
    model = case_model(case)
    plant(model.functions[0])
    return find_mismatch(case, run_onnx_reference(case, model)) is not None


def test_contract_rejects_interleaved_groups():
    case = _case("MoHAttention", "grouped_rank4")
    query, key, value, gates = case.inputs()
    heads, kv_heads = case.attributes["q_num_heads"], case.attributes["kv_num_heads"]
    interleaved = [np.tile(array, (1, heads // kv_heads, 1, 1)) for array in (key, value)]
    outputs = OPS[case.op].reference(
        (query, *interleaved, gates), {**case.attributes, "kv_num_heads": heads}
    )
    assert "out of tolerance" in find_mismatch(case, [outputs[0].astype(np.float32)])


@pytest.mark.parametrize(
    "name", ["tied_logits", "flat_logits", "mask_mode_ties", "mask_mode_underflowing"]
)
def test_contract_rejects_ties_toward_the_highest_head(name: str):
    case = _case("MoHRouter", name)
    routed, shared, stage = case.inputs()
    gates = OPS[case.op].reference((routed[..., ::-1], shared, stage), case.attributes)[0]
    num_shared = int(case.attributes["num_shared_heads"])
    flipped = np.concatenate([gates[..., :num_shared], gates[..., num_shared:][..., ::-1]], axis=-1)
    assert find_mismatch(case, [flipped.astype(np.float32)]) is not None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda gates: gates.astype(np.float64), "expected float32"),
        (lambda gates: gates[:, :-1], r"expected float32\(2, 7, 9\)"),
        (lambda gates: np.where(gates == 0, 1e-30, gates).astype(np.float32), "not exactly 0"),
        (lambda gates: np.where(gates == 0, 0, np.nan).astype(np.float32), "out of tolerance"),
        (lambda gates: np.where(gates > 0, np.inf, 0).astype(np.float32), "out of tolerance"),
    ],
)
def test_contract_names_what_is_wrong(spoil, message: str):
    case = _case("MoHRouter", "two_stage")
    right = OPS[case.op].reference(case.inputs(), case.attributes)[0].astype(np.float32)
    assert find_mismatch(case, [right]) is None
    with pytest.raises(AssertionError, match=message):
        _assert_right(case, spoil(right))


def test_contract_counts_outputs():
    case = _case("MoHRouter", "two_stage")
    assert "0 outputs; expected 1" in find_mismatch(case, [])


def _assert_right(case: Case, output: np.ndarray) -> None:
    problem = find_mismatch(case, [output])
    assert problem is None, problem


def _case(op: str, name: str) -> Case:
    return named_case(op, name)

"""Bugs that the contract must catch.

Each is planted into the function bodies and has to fail at least one case.
"""

import re
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
make = onnx.helper.make_node


def _node(function: onnx.FunctionProto, output: str) -> onnx.NodeProto | None:
    return next((node for node in function.node if output in node.output), None)


def _knows(function: onnx.FunctionProto, values: tuple[str, ...]) -> bool:
    outputs = [name for node in function.node for name in node.output]
    return set(values) <= {*function.input, *outputs}


def _insert(function: onnx.FunctionProto, output: str, *steps: onnx.NodeProto) -> None:
    """Put steps in front of the node that makes `output`."""
    index = next(i for i, node in enumerate(function.node) if output in node.output)
    for step in reversed(steps):
        function.node.insert(index, step)


def _becomes(output: str, op_type: str, *inputs: str, **attributes: int) -> Bug:
    """The node that makes `output` turns into another one, in every body with these values."""

    def plant(function: onnx.FunctionProto) -> None:
        node = _node(function, output)
        if node is not None and _knows(function, inputs):
            node.CopyFrom(make(op_type, inputs, [output], **attributes))

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
        function.node.insert(index + 1, make("Cast", [f"{value}_exact"], [f"{value}_half"], to=10))
        function.node.insert(index + 2, make("Cast", [f"{value}_half"], [value], to=1))

    return plant


def _softmax_without_the_row_maximum(function: onnx.FunctionProto) -> None:
    node = next(node for node in function.node if node.op_type == "Softmax")
    (scores,), (weights,) = node.input, node.output
    _insert(
        function,
        weights,
        make("Exp", [scores], ["exponentials"]),
        make("ReduceSum", ["exponentials", "last_axis"], ["total"]),
    )
    _becomes(weights, "Div", "exponentials", "total")(function)


def _softmax_over_masked_logits(function: onnx.FunctionProto) -> None:
    """Unchosen logits become 0 and softmax runs last: 0 is not the neutral element of softmax."""
    if _node(function, "divisor") is None:
        return
    _becomes("probabilities", "Identity", "logits")(function)
    _reads("routed_gates", "all_closed", "chosen_heads", "chosen")(function)
    _node(function, "routed_gates").output[:] = ["kept_logits"]
    index = next(i for i, n in enumerate(function.node) if "kept_logits" in n.output)
    softmax = make("Softmax", ["kept_logits"], ["routed_gates"], axis=-1)
    function.node.insert(index + 1, softmax)


def _choose_by_logit(function: onnx.FunctionProto) -> None:
    """Logits differ where float32 probabilities tie; mask mode shows it: a chosen gate is 1."""
    if _node(function, "divisor") is None:
        _reads("chosen", "logits", "top_k")(function)


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
    _becomes("features", "Identity", "unbiased")(function)
    channels = make("Shape", ["weight"], ["channels"], start=0, end=1)
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
    _insert(
        function,
        "tokens_BCN",
        make("Shape", ["tokens"], ["shape"]),
        make("Constant", [], ["order"], value_ints=[0, 2, 1]),
        make("Gather", ["shape", "order"], ["swapped"]),
    )
    _becomes("tokens_BCN", "Reshape", "tokens", "swapped")(function)


def _gelu_by_sigmoid(function: onnx.FunctionProto) -> None:
    """gelu is about x * sigmoid(1.702 x)."""
    constant = _node(function, "sqrt_half")
    if constant is not None:
        constant.attribute[0].f = 1.702
        _becomes("share", "Sigmoid", "scaled")(function)


def _gelu_by_tanh(function: onnx.FunctionProto) -> None:
    """gelu is about x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    if _node(function, "erf") is None:
        return
    _insert(
        function,
        "erf",
        make("Constant", [], ["cubic"], value_float=0.044715),
        make("Constant", [], ["factor"], value_float=(2 / np.pi) ** 0.5),
        make("Mul", ["convolved", "convolved"], ["square"]),
        make("Mul", ["square", "cubic"], ["share_of_cube"]),
        make("Mul", ["share_of_cube", "convolved"], ["cube"]),
        make("Add", ["convolved", "cube"], ["sum"]),
        make("Mul", ["sum", "factor"], ["tanh_argument"]),
    )
    _becomes("erf", "Tanh", "tanh_argument")(function)


def _embedding_after_the_scale(function: onnx.FunctionProto) -> None:
    if _knows(function, ("embedding", "scale")):
        _insert(function, "score_query", make("Mul", ["query", "scale"], ["scaled"]))
        _becomes("score_query", "Add", "scaled", "embedding")(function)


def _softmax_apart(function: onnx.FunctionProto) -> None:
    """Window and pooled scores have a softmax each."""
    _becomes("softmax_window", "Softmax", "window_scores_BHNL", axis=-1)(function)
    _becomes("pooled_weights", "Softmax", "pooled_scores", axis=-1)(function)


def _reversed(output: str, of: str = "input") -> Bug:
    """The values that a node reads, or makes, in the other order."""

    def plant(function: onnx.FunctionProto) -> None:
        node = _node(function, output)
        if node is not None:
            values = getattr(node, of)
            values[:] = list(values)[::-1]

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


BUGS: dict[str, dict[str, Bug]] = {
    "MoHAggregatedAttention": {
        "mul_instead_of_where": _becomes("gated", "Identity", "product"),
        "gate_closed_unless_positive": _becomes("closed", "LessOrEqual", "gate", "zero"),
        "gates_not_applied": _becomes("product", "Identity", "heads"),
        "query_not_normalized": _becomes("query", "Identity", "query_raw"),
        "key_not_normalized": _becomes("key", "Identity", "key_raw"),
        "pooled_key_not_normalized": _becomes("pooled_key", "Identity", "pooled_key_raw"),
        "query_divided_by_zero": _becomes("query_divisor", "Identity", "query_length"),
        "key_divided_by_zero": _becomes("key_divisor", "Identity", "key_length"),
        "pooled_key_divided_by_zero": _becomes(
            "pooled_key_divisor", "Identity", "pooled_key_length"
        ),
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
    },
    "MoHAttention": {
        "mul_instead_of_where": _becomes("gated", "Identity", "product"),
        "blind_queries_not_silenced": _becomes("silent", "Identity", "closed"),
        "nan_gate_of_blind_query_lost": _reads("gated", "silent", "zero", "product"),
        "gate_closed_unless_positive": _becomes("closed", "LessOrEqual", "gate", "zero"),
        "gates_not_applied": _becomes("product", "Identity", "heads_BHSD"),
        "scale_ignored": _becomes("query", "Identity", "query_unscaled"),
        "causal_without_offset": _reads("query_position", "first", "seq_len", "one"),
        "causal_hides_the_diagonal": _becomes(
            "in_reach", "Greater", "query_position_S1", "key_position"
        ),
        "filled_lengths_ignored": _reads("filled", "kv_len_1d", "inner_axes"),
        "filled_length_is_seen": _becomes("is_filled", "LessOrEqual", "key_position", "filled"),
        "filled_causal_from_the_first_key": _becomes(
            "query_position_S1", "Identity", "query_index_S1"
        ),
        "filled_causal_from_the_end_of_the_room": _becomes("offset", "Sub", "kv_len", "seq_len"),
        "what_is_not_filled_reaches_scores": _becomes("scores", "Add", "scores_BHST", "bias"),
        "what_is_not_filled_reaches_values": _becomes("value_filled", "Identity", "value"),
        "causal_ignored_beside_a_mask": _becomes("seen", "Identity", "attn_mask"),
        "bool_mask_inverted": _reads("bias", "seen", "minus_infinity", "zero"),
        "additive_mask_ignored": _becomes("scores", "Identity", "scores_BHST"),
        "softmax_over_queries": _set_attribute("weights", "axis", -2),
        "softmax_without_the_row_maximum": _softmax_without_the_row_maximum,
        "scores_in_half_precision": _in_half_precision("scores_BHST"),
        "merged_without_transpose": _becomes("gated_BSHD", "Identity", "gated_typed"),
    },
    "MoHQueryProjection": {
        "bias_ignored": _becomes("Q", "Identity", "product"),
        "bias_subtracted": _becomes("Q", "Sub", "product", "bias"),
        "product_in_half_precision": _in_half_precision("product"),
    },
    "MoHOutputProjection": {
        "output_bias_ignored": _becomes("Y", "Identity", "product"),
        "output_product_in_half_precision": _in_half_precision("product"),
    },
    "MoHRouter": {
        "chosen_by_logit": _choose_by_logit,
        "softmax_over_masked_logits": _softmax_over_masked_logits,
        "not_renormalised": _becomes("shares", "Identity", "chosen"),
        "not_times_top_k": _becomes("unweighed", "Identity", "shares"),
        "not_times_num_shared": _becomes("shared_unweighed", "Identity", "shared_probabilities"),
        "shared_and_routed_swapped": _reversed("gates_float"),
        "stage_weights_swapped": _reversed("shared_weight", "output"),
        "stage_not_times_two": _becomes("stage_weights", "Identity", "stage_probabilities"),
        "smallest_heads_chosen": _set_attribute("chosen", "largest", 0),
        "gates_are_probabilities": _becomes("chosen_gates", "Identity", "chosen"),
    },
    "MoHTokenConv": {
        "conv_without_padding_on_the_left": _padded_on_the_right,
        "conv_dilated": _set_attribute("convolved_image", "dilations", [2, 2]),
        "conv_rows_are_columns": _reads("image_shape", "same", "columns", "rows"),
        "conv_image_not_transposed": _reshape_instead_of_transpose,
        "conv_bias_ignored": _reads("convolved_image", "image", "weight"),
        "conv_input_bias_ignored": _becomes("features", "Identity", "unbiased"),
        "conv_input_bias_outside_of_the_image": _biased_padding,
        "conv_gelu_ignored": _becomes("activated", "Identity", "convolved"),
        "conv_gelu_without_half": _becomes("share", "Identity", "twice_share"),
        "conv_gelu_by_sigmoid": _gelu_by_sigmoid,
        "conv_gelu_by_tanh": _gelu_by_tanh,
        "conv_gate_ignored": _becomes("gated_float", "Identity", "activated"),
        "conv_gate_before_activation": _becomes("scaled", "Mul", "convolved", "gate"),
        "conv_halves_swapped": _reversed("gate", "output"),
        "conv_in_half_precision": _in_half_precision("convolved"),
    },
}


@sampled(3)
@pytest.mark.parametrize("bug", one_in(3, [f"{op}/{name}" for op in BUGS for name in BUGS[op]]))
def test_contract_rejects_the_planted_bug(bug: str):
    op, name = bug.split("/")
    plant = BUGS[op][name]
    cases = [case for case in OP_CASES[op] if case.dtype == "float32"]
    assert any(_fails(case, plant) for case in cases), f"no case of {op} notices '{name}'"


def _fails(case: Case, plant: Bug) -> bool:
    model = case_model(case)
    plant(model.functions[0])
    return find_mismatch(case, run_onnx_reference(case, model)) is not None


def test_contract_rejects_interleaved_groups():
    case = named_case("MoHAttention", "grouped_rank4")
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
    case = named_case("MoHRouter", name)
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
    case = named_case("MoHRouter", "two_stage")
    right = OPS[case.op].reference(case.inputs(), case.attributes)[0].astype(np.float32)
    assert find_mismatch(case, [right]) is None
    assert re.search(message, find_mismatch(case, [spoil(right)]))


def test_contract_counts_outputs():
    case = named_case("MoHRouter", "two_stage")
    assert "0 outputs; expected 1" in find_mismatch(case, [])

"""MoHAttention as an ONNX function in standard ops: what runs wherever no kernel is installed.

A function cannot branch on the rank of an input, on the presence of one, or on an attribute. Each
combination is a variant with a body of its own, put together from the fragments below. Only
variants that need a step contain it.
"""

from dataclasses import dataclass
from typing import Literal

import onnx

from moh_deploy.ops.attention_shapes import ATTN_MASK, KEY_RANGES, NONPAD_KV_SEQLEN, optional_input
from moh_deploy.ops.spec import Attributes, BodyVariant, TensorTypes, parsed_function

MaskKind = Literal["bool", "float"]


@dataclass(frozen=True)
class AttentionVariant(BodyVariant):
    """Selects one body of MoHAttention."""

    rank: Literal[3, 4]  # 3 for [B, S, H*D] inputs and output, 4 for [B, H, S, D]
    mask: MaskKind | None  # kind of attn_mask, or None where the input is absent
    is_causal: bool  # query s sees keys up to s + T - S
    grouped: bool  # several query heads share a key/value head
    filled: bool = False  # nonpad_kv_seqlen is given: it stands in for T, sequence by sequence
    ranges: bool = False  # key_ranges is given

    @property
    def hides_keys(self) -> bool:
        """Some query may not see some key, or none at all."""
        return self.mask is not None or self.by_position

    @property
    def by_position(self) -> bool:
        """Where a key lies decides whether a query sees it."""
        return self.is_causal or self.filled or self.ranges


def variant_of(inputs: TensorTypes, attributes: Attributes) -> AttentionVariant:
    """Return the variant that a node needs; the node must satisfy the shape rule."""
    query, mask = inputs[0], optional_input(inputs, ATTN_MASK)
    assert query is not None
    # A bool mask selects, a float mask of any dtype is added: two bodies.
    kind: MaskKind | None = None if mask is None else "bool" if mask.dtype == "bool" else "float"
    return AttentionVariant(
        rank=3 if len(query.shape) == 3 else 4,
        mask=kind,
        is_causal=bool(attributes["is_causal"]),
        # With as many key/value heads as query heads nothing has to be stacked.
        grouped=attributes["q_num_heads"] != attributes["kv_num_heads"],
        filled=optional_input(inputs, NONPAD_KV_SEQLEN) is not None,
        ranges=optional_input(inputs, KEY_RANGES) is not None,
    )


def function_body(variant: AttentionVariant, *, opset: int) -> onnx.FunctionProto:
    """Build the body of MoHAttention for one variant."""
    # A body has parameters up to its last present input, one that is left out in between included.
    given = {
        "attn_mask": variant.mask is not None,
        "nonpad_kv_seqlen": variant.filled,
        "key_ranges": variant.ranges,
    }
    last = max((place for place, present in enumerate(given.values(), 1) if present), default=0)
    inputs = ", ".join(["Q, K, V, gates", *list(given)[:last]])
    steps = [
        CONSTANTS,
        _split_heads(variant),
        _GATES,
        position_mask(variant),
        bias_of_mask(variant),
        _attend(variant),
        _gate(variant),
        merged_heads(variant),
    ]
    signature = f"MoHAttention <q_num_heads, kv_num_heads, scale, is_causal> ({inputs}) => (Y)"
    return parsed_function(signature, steps, opset=opset)


CONSTANTS = """
    zero = Constant <value_float = 0.0> ()
    one_element = Constant <value_ints = [1]> ()
    first_axis = Constant <value_ints = [0]> ()
    last_axis = Constant <value_ints = [-1]> ()
    keep_one = Constant <value_ints = [0]> ()
    keep_two = Constant <value_ints = [0, 0]> ()
    rest = Constant <value_ints = [-1]> ()
    scale = Constant <value_float: float = @scale> ()
    q_heads_scalar = Constant <value_int: int = @q_num_heads> ()
    q_heads = Reshape (q_heads_scalar, one_element)
    kv_heads_scalar = Constant <value_int: int = @kv_num_heads> ()
    kv_heads = Reshape (kv_heads_scalar, one_element)
"""


HEADS_APART = """
    q_split_shape = Concat <axis = 0> (keep_two, q_heads, rest)
    kv_split_shape = Concat <axis = 0> (keep_two, kv_heads, rest)
    query_BSHD = Reshape (Q, q_split_shape)
    key_BTHD = Reshape (K, kv_split_shape)
    value_BTHD = Reshape (V, kv_split_shape)
    query_BHSD = Transpose <perm = [0, 2, 1, 3]> (query_BSHD)
    value_BHTD = Transpose <perm = [0, 2, 1, 3]> (value_BTHD)
"""
"""[B, S, H*D] to [B, H, S, D]; of keys to [B, T, H, D]."""


def _split_heads(variant: AttentionVariant) -> str:
    """query_BHSD, key_BHDT and value_BHTD in the inputs' dtype, then the operands in float32."""
    # The product of scores reads keys as [B, H, D, T].
    if variant.rank == 3:
        split = f"{HEADS_APART} key_BHDT = Transpose <perm = [0, 2, 3, 1]> (key_BTHD)"
    else:
        split = """
            query_BHSD = Identity (Q)
            key_BHDT = Transpose <perm = [0, 1, 3, 2]> (K)
            value_BHTD = Identity (V)
        """
    # The scale goes onto the smaller operand; ONNX Runtime folds it into the product.
    return f"""
        {split}
        query_unscaled = Cast <to = 1> (query_BHSD)
        key = Cast <to = 1> (key_BHDT)
        value = Cast <to = 1> (value_BHTD)
        query = Mul (query_unscaled, scale)
    """


_GATES = """
    gates_BHS = Transpose <perm = [0, 2, 1]> (gates)
    gates_column = Unsqueeze (gates_BHS, last_axis)
    gate = Cast <to = 1> (gates_column)
    closed = Equal (gate, zero)
"""


def position_mask(variant: AttentionVariant) -> str:
    """`in_reach`: key t is filled, in the range of query s and not in its future.

    [S, T] with t <= s + T - S, the same for each sequence; [B, 1, 1 or S, T] where lengths differ.
    """
    if not variant.by_position:
        return ""
    # Range makes positions from sizes at run time, so both lengths may be dynamic.
    steps = """
        one = Constant <value_int = 1> ()
        first = Constant <value_int = 0> ()
        kv_len_1d = Shape <start = 3, end = 4> (key_BHDT)
        kv_len = Squeeze (kv_len_1d, first_axis)
        key_position = Range (first, kv_len, one)
    """
    # The standard Attention is no help: older runtimes count causal positions from key 0.
    if variant.filled:
        steps += """
            inner_axes = Constant <value_ints = [1, 2, 3]> ()
            filled = Unsqueeze (nonpad_kv_seqlen, inner_axes)
            is_filled = Less (key_position, filled)
            is_filled_column = Transpose <perm = [0, 1, 3, 2]> (is_filled)
            value_filled = Where (is_filled_column, value, zero)
        """
    conditions = ["is_filled"] if variant.filled else []
    if variant.ranges:
        # first and end are [B or 1, 1, S, 1].
        conditions.append("in_range")
        steps += """
            two_sizes = Constant <value_ints = [1, 1]> ()
            ranges_BHSR = Unsqueeze (key_ranges, one_element)
            first_seen, end_seen = Split <axis = -1> (ranges_BHSR, two_sizes)
            from_first = GreaterOrEqual (key_position, first_seen)
            before_end = Less (key_position, end_seen)
            in_range = And (from_first, before_end)
        """
    if variant.is_causal:
        # The last query stands at the last key, or the last filled one: no query looks beyond it.
        conditions = ["in_past", *conditions[variant.filled :]]
        steps += """
            seq_len_1d = Shape <start = 2, end = 3> (query_BHSD)
            seq_len = Squeeze (seq_len_1d, first_axis)
        """
        if variant.filled:
            steps += """
                query_index = Range (first, seq_len, one)
                query_index_S1 = Unsqueeze (query_index, last_axis)
                offset = Sub (filled, seq_len)
                query_position_S1 = Add (query_index_S1, offset)
            """
        else:
            steps += """
                offset = Sub (kv_len, seq_len)
                query_position = Range (offset, kv_len, one)
                query_position_S1 = Unsqueeze (query_position, last_axis)
            """
        steps += "in_past = GreaterOrEqual (query_position_S1, key_position)"
    joined = "And" if len(conditions) == 2 else "Identity"
    return f"{steps} in_reach = {joined} ({', '.join(conditions)})"


def bias_of_mask(variant: AttentionVariant) -> str:
    """`bias`, added to the scores: -inf where a key is hidden; and `blind`: queries that see none.

    Both have the mask's own shape, which seldom has a head axis: nothing is as large as the scores.
    """
    if not variant.hides_keys:
        return ""
    # By mask and whether positions count: what tells which keys are seen, and what their bias is.
    seen, seen_bias = {
        (None, True): ("seen = Identity (in_reach)", "zero"),
        ("bool", False): ("seen = Identity (attn_mask)", "zero"),
        ("bool", True): ("seen = And (attn_mask, in_reach)", "zero"),
        ("float", False): ("", "mask"),
        ("float", True): ("seen = Identity (in_reach)", "mask"),
    }[variant.mask, variant.by_position]
    return f"""
        minus_infinity = Constant <value_float = -inf> ()
        {"mask = Cast <to = 1> (attn_mask)" if variant.mask == "float" else ""}
        {seen}
        bias = {f"Where (seen, {seen_bias}, minus_infinity)" if seen else "Identity (mask)"}
        best_bias = ReduceMax <keepdims = 1> (bias, last_axis)
        blind = Equal (best_bias, minus_infinity)
    """


def _mask_scores(variant: AttentionVariant) -> str:
    """`scores` from scores_BHST: biased, and -inf behind the filled keys whatever lies there."""
    # Without a bias an Add is saved.
    if not variant.filled:
        biased = "Add (scores_BHST, bias)" if variant.hides_keys else "Identity (scores_BHST)"
        return f"scores = {biased}"
    biased = "Add (scores_BHST, mask)" if variant.mask == "float" else "Identity (scores_BHST)"
    return f"biased = {biased} scores = Where (seen, biased, minus_infinity)"


def _attend(variant: AttentionVariant) -> str:
    """heads_BHSD = softmax(query @ key + bias) @ value."""
    value = "value_filled" if variant.filled else "value"
    if not variant.grouped:
        return f"""
            scores_BHST = MatMul (query, key)
            {_mask_scores(variant)}
            weights = Softmax <axis = -1> (scores)
            heads_BHSD = MatMul (weights, {value})
        """
    # The query heads of a group are neighbours: their rows stack into one product for each
    # key/value head, and no key or value is repeated.
    masked_weights = f"""
        scores_BHST = Reshape (scores_stacked, unstack_shape)
        {_mask_scores(variant)}
        weights_BHST = Softmax <axis = -1> (scores)
        weights = Reshape (weights_BHST, stack_shape)
    """
    return f"""
        stack_shape = Concat <axis = 0> (keep_one, kv_heads, rest, keep_one)
        unstack_shape = Concat <axis = 0> (keep_one, q_heads, rest, keep_one)
        query_stacked = Reshape (query, stack_shape)
        scores_stacked = MatMul (query_stacked, key)
        {masked_weights if variant.hides_keys else "weights = Softmax <axis = -1> (scores_stacked)"}
        heads_stacked = MatMul (weights, {value})
        heads_BHSD = Reshape (heads_stacked, unstack_shape)
    """


def _gate(variant: AttentionVariant) -> str:
    """gated = gate * heads, and 0 where the gate is closed or the query sees no key.

    Where, not Mul alone: a closed gate also silences NaN and Inf, and a blind query is NaN here
    (softmax over -inf only).
    """
    product = "product = Mul (heads_BHSD, gate)"
    # Where every query sees a key, only closed gates have to be silenced.
    if not variant.hides_keys:
        return f"{product} gated = Where (closed, zero, product)"
    return f"""
        {product}
        silent = Or (closed, blind)
        gate_times_zero = Mul (gate, zero)
        gated = Where (silent, gate_times_zero, product)
    """


def merged_heads(variant: AttentionVariant) -> str:
    """Y in the dtype of Q, of `gated` [B, H, S, D]; heads stay an axis of their own in rank 4."""
    if variant.rank == 4:
        return "Y = CastLike (gated, Q)"
    return """
        gated_typed = CastLike (gated, Q)
        gated_BSHD = Transpose <perm = [0, 2, 1, 3]> (gated_typed)
        merge_shape = Concat <axis = 0> (keep_two, rest)
        Y = Reshape (gated_BSHD, merge_shape)
    """

"""MoHAttention as ONNX's own Attention and a product with the gates.

    Y = gates * Attention(Q, K, V, mask)

The body in `attention_function.py` spells the softmax out, in float32. This one leaves it to
`Attention` of opset 23, in the inputs' dtype, which a runtime may have one kernel for: TensorRT
has. It is never in a package; a runtime that wants it puts it in the place of a node.
"""

import onnx

from moh_deploy.ops import attention_function
from moh_deploy.ops.spec import parsed_function

FUSED_OPSET = 23
"""The first version of the standard ops that has Attention."""


def fused_function_body(
    variant: attention_function.AttentionVariant, *, square: bool, opset: int = FUSED_OPSET
) -> onnx.FunctionProto:
    """Build the body of MoHAttention over ONNX's Attention, for one variant.

    Args:
        variant: What the node is like.
        square: There are as many keys as queries, whatever the sizes. Runtimes differ in where a
            causal Attention puts its queries among more keys, so positions are a mask there.
        opset: Version of the standard ops that the model imports, FUSED_OPSET or later.
    """
    # Attention takes no mask and is causal at once in TensorRT: then positions are in the mask.
    by_position = variant.is_causal and not (square and variant.mask is None)
    # `bias_of_mask` sees a causal layer where positions are in the mask only.
    masked = attention_function.AttentionVariant(
        variant.rank, variant.mask, by_position, variant.grouped
    )
    inputs = "Q, K, V, gates" + (", attn_mask" if variant.mask else "")
    steps = [
        attention_function.CONSTANTS,
        _split_heads(variant),
        attention_function.position_mask(masked),
        attention_function.bias_of_mask(masked),
        _attend(masked, is_causal=variant.is_causal and not by_position),
        _gate(masked),
        attention_function.merged_heads(variant),
    ]
    signature = f"MoHAttention <q_num_heads, kv_num_heads, scale, is_causal> ({inputs}) => (Y)"
    return parsed_function(signature, steps, opset=opset)


def _split_heads(variant: attention_function.AttentionVariant) -> str:
    """query_BHSD, key_BHTD and value_BHTD, and key_BHDT, whose size `position_mask` reads."""
    split = "query_BHSD = Identity (Q) key_BHTD = Identity (K) value_BHTD = Identity (V)"
    if variant.rank == 3:
        key = "key_BHTD = Transpose <perm = [0, 2, 1, 3]> (key_BTHD)"
        split = f"{attention_function.HEADS_APART} {key}"
    return f"{split} key_BHDT = Transpose <perm = [0, 1, 3, 2]> (key_BHTD)"


def _attend(variant: attention_function.AttentionVariant, *, is_causal: bool) -> str:
    """heads_BHSD, not yet multiplied: NaN, or anything, where a query sees no key."""
    attributes = f"<scale: float = @scale, is_causal = {int(is_causal)}>"
    if not variant.hides_keys:
        return f"heads_BHSD = Attention {attributes} (query_BHSD, key_BHTD, value_BHTD)"
    # bool where it can be: an implementation then knows hidden keys from a sum that is -inf.
    narrow = "Identity (seen)" if variant.mask != "float" else "CastLike (bias, Q)"
    # TensorRT takes [1 or B, 1 or H, S, T].
    return f"""
        mask_seq_len = Shape <start = 2, end = 3> (query_BHSD)
        mask_kv_len = Shape <start = 2, end = 3> (key_BHTD)
        mask_shape = Concat <axis = 0> (one_element, one_element, mask_seq_len, mask_kv_len)
        narrow_mask = {narrow}
        mask_BHST = Expand (narrow_mask, mask_shape)
        heads_BHSD = Attention {attributes} (query_BHSD, key_BHTD, value_BHTD, mask_BHST)
    """


def _gate(variant: attention_function.AttentionVariant) -> str:
    """gated = gate * heads, and 0 where the gate is closed or the query sees no key."""
    # As in the other body, Where silences what is NaN behind a closed gate, and a gate of NaN is
    # one where the query sees no key.
    silent = "Or (closed, blind)" if variant.hides_keys else "Identity (closed)"
    return f"""
        gates_BHS = Transpose <perm = [0, 2, 1]> (gates)
        gate = Unsqueeze (gates_BHS, last_axis)
        zero_typed = CastLike (zero, Q)
        closed = Equal (gate, zero_typed)
        silent = {silent}
        product = Mul (heads_BHSD, gate)
        gate_times_zero = Mul (gate, zero_typed)
        gated = Where (silent, gate_times_zero, product)
    """

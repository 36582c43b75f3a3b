"""MoHAttention: attention whose heads are weighed, or switched off, token by token.

    Y = gates * softmax(scale * Q K^T + mask) V        for each batch, head and query

Source: Mixture-of-Head attention, arXiv 2410.11842, section 3.2: a head's output enters the sum
with its routing score, an unchosen head's with 0. Names, ranks, masks, grouped heads and the filled
length of a cache follow ONNX Attention, opset 24, with its erratum: a causal query counts from the
last filled key.
"""

import numpy as np

from moh_deploy.ops import op_names, spec
from moh_deploy.ops.attention_function import function_body, variant_of
from moh_deploy.ops.attention_shapes import KEY_RANGES, NONPAD_KV_SEQLEN, attention_shape_rule
from moh_deploy.ops.spec import Arrays, Attributes, OpSpec


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute MoHAttention in float64, one head at a time.

    Args:
        inputs: Q, K, V, gates and optionally attn_mask, nonpad_kv_seqlen and key_ranges, of any
            supported dtype.

    Returns:
        Y in float64.
    """
    q_num_heads, kv_num_heads = int(attributes["q_num_heads"]), int(attributes["kv_num_heads"])
    query_BHSD = _with_head_axis(inputs[0], q_num_heads)
    key_BHTD = _with_head_axis(inputs[1], kv_num_heads)
    value_BHTD = _with_head_axis(inputs[2], kv_num_heads)
    gates_BSH = spec.float64(inputs[3])
    # How many keys of each sequence are filled: all that there are, or nonpad_kv_seqlen.
    given = inputs[NONPAD_KV_SEQLEN] if len(inputs) > NONPAD_KV_SEQLEN else None
    kv_len = key_BHTD.shape[2]
    filled_B = np.full(len(key_BHTD), kv_len) if given is None else given.astype(np.int64)
    # In full size, for reading: kernels and function bodies never make it.
    bias_BHST = _bias(inputs, attributes, query_BHSD.shape, kv_len, filled_B)

    output_BHSD = np.empty((*query_BHSD.shape[:3], value_BHTD.shape[3]))
    for b, h in np.ndindex(query_BHSD.shape[:2]):
        # Grouped-query attention: neighbouring query heads share a key/value head.
        shared = h // (q_num_heads // kv_num_heads)
        # What lies behind the filled keys may be anything, NaN included: nothing reads it.
        key_TD, value_TD = (x[b, shared, : filled_B[b]] for x in (key_BHTD, value_BHTD))
        scores = float(attributes["scale"]) * _dot(query_BHSD[b, h], key_TD.T)
        weights = _softmax_or_zero(scores, bias_BHST[b, h, :, : filled_B[b]])
        heads = _dot(weights, value_TD)
        gate = gates_BSH[b, :, h, None]
        with np.errstate(invalid="ignore"):
            # 0 for a closed head whatever its output is: 0 * NaN would be NaN.
            output_BHSD[b, h] = np.where(gate == 0, 0, gate * heads)

    if np.ndim(inputs[0]) == 4:  # type: ignore[arg-type]
        return (output_BHSD,)
    output_BSHD = output_BHSD.transpose(0, 2, 1, 3)
    return (output_BSHD.reshape(*output_BSHD.shape[:2], q_num_heads * value_BHTD.shape[3]),)


def _with_head_axis(array: np.ndarray | None, num_heads: int) -> np.ndarray:
    """[B, S, H*D] or [B, H, S, D] to [B, H, S, D]."""
    wide = spec.float64(array)
    if wide.ndim == 4:
        return wide
    batch, length, hidden = wide.shape
    by_token = wide.reshape(batch, length, num_heads, hidden // num_heads)
    by_head: np.ndarray = by_token.transpose(0, 2, 1, 3)
    return by_head


def _bias(
    inputs: Arrays,
    attributes: Attributes,
    query_shape: tuple[int, ...],
    kv_len: int,
    filled_B: np.ndarray,
) -> np.ndarray:
    """Return the bias of scores [B, H, S, T]: -inf where a key is hidden, else 0 or the mask."""
    batch, num_heads, seq_len, _ = query_shape
    bias = np.zeros((batch, num_heads, seq_len, kv_len))
    mask = inputs[4] if len(inputs) > 4 else None
    if mask is not None:
        # Broadcast to [B, H, S, T]; in a bool mask True means seen.
        bias += np.where(mask, 0.0, -np.inf) if mask.dtype == bool else spec.float64(mask)
    if attributes["is_causal"]:
        for b, s in np.ndindex(batch, seq_len):
            # The last query stands at the last filled key, so with cached keys the first is at
            # filled - S.
            position = s + filled_B[b] - seq_len
            bias[b, :, s, max(position + 1, 0) :] = -np.inf
    ranges = inputs[KEY_RANGES] if len(inputs) > KEY_RANGES else None
    if ranges is not None:
        key = np.arange(kv_len)
        for b, s in np.ndindex(batch, seq_len):
            first, end = ranges[b if len(ranges) > 1 else 0, s]
            bias[b, :, s, (key < first) | (key >= end)] = -np.inf
    return bias


def _softmax_or_zero(scores: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Softmax over the keys [S, T]; a query that sees no key has weight 0 for each."""
    # softmax over nothing but -inf is 0 / 0: such a query attends to nothing.
    blind = np.all(np.isneginf(bias), axis=-1, keepdims=True)
    # A hidden key stays hidden where its score is NaN or infinite.
    biased = np.where(np.isneginf(bias), -np.inf, scores + bias)
    with np.errstate(invalid="ignore"):
        # The maximum is taken off, so that exp does not overflow.
        exponentials = np.exp(biased - biased.max(axis=-1, keepdims=True, initial=-np.inf))
        weights = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return np.where(blind, 0.0, weights)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        product: np.ndarray = a @ b
    return product


MOH_ATTENTION = OpSpec(
    name=op_names.ATTENTION,
    doc="Gated attention: gates * softmax(scale * Q K^T + mask) V for each token and head.",
    inputs=(
        spec.OpInput(
            "Q", "Queries, [B, S, Hq*D] or [B, Hq, S, D]; `K`, `V` and `Y` have the same rank."
        ),
        spec.OpInput("K", "Keys, [B, T, Hkv*D] or [B, Hkv, T, D]."),
        spec.OpInput(
            "V", "Values, [B, T, Hkv*Dv] or [B, Hkv, T, Dv]: their head size may be another."
        ),
        spec.OpInput(
            "gates", "[B, S, Hq], of any sign; 0 means that the token did not choose the head."
        ),
        spec.OpInput(
            "attn_mask",
            "Of rank 1 to 4, broadcastable to [B, Hq, S, T]. bool: true where a key is seen. "
            "Float of any dtype: added to the scores, -inf hides a key.",
            optional=True,
            types=("bool", *spec.FLOAT_TYPES),
            constraint="U",
        ),
        spec.OpInput(
            "nonpad_kv_seqlen",
            "[B]: how many keys of each sequence are filled, 0 to T. Keys and values from there on "
            "are neither seen nor read, so that K and V may be a cache with room for more.",
            optional=True,
            types=spec.LENGTH_TYPES,
            constraint="L",
        ),
        spec.OpInput(
            "key_ranges",
            "[B, S, 2] or [1, S, 2]: query s sees the keys from the first number up to, not "
            "including, the second. Numbers below 0 count as 0, above T as T.",
            optional=True,
            types=spec.LENGTH_TYPES,
            constraint="L",
        ),
    ),
    outputs=(
        spec.OutputSpec("Y", "[B, S, Hq*Dv] or [B, Hq, S, Dv], as `Q`: multiplied by the gates."),
    ),
    attributes=(
        spec.AttributeSpec(
            "q_num_heads",
            "`Hq`, a multiple of `Hkv`; query head h reads key/value head `h // (Hq / Hkv)`.",
            at_least=1,
        ),
        spec.AttributeSpec("kv_num_heads", "`Hkv`.", at_least=1),
        spec.AttributeSpec("scale", "Factor of the scores, such as `1/sqrt(D)`.", "float"),
        spec.AttributeSpec(
            "is_causal",
            "1: query s sits at position `s + T - S`, or `s + nonpad_kv_seqlen - S`, and sees the "
            "keys up to it.",
            default=0,
            choices=spec.FLAG,
        ),
    ),
    reference=reference,
    shape_rule=attention_shape_rule,
    variant=variant_of,
    body=function_body,
)

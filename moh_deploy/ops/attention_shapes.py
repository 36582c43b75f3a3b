"""The shape rule of MoHAttention: the output's type, and which inputs do not fit together."""

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names, spec
from moh_deploy.ops.spec import Attributes, OpDim, TensorType, TensorTypes

_OP = op_names.ATTENTION

ATTN_MASK, NONPAD_KV_SEQLEN, KEY_RANGES = 4, 5, 6
"""Places of the optional inputs."""


def attention_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of Y.

    Args:
        inputs: Types of Q, K, V, gates and optionally attn_mask, nonpad_kv_seqlen and key_ranges.
    """
    q_num_heads, kv_num_heads = int(attributes["q_num_heads"]), int(attributes["kv_num_heads"])
    if q_num_heads % kv_num_heads:
        raise ExportError(
            f"{_OP}: q_num_heads is {q_num_heads}; "
            f"expected a multiple of kv_num_heads, {kv_num_heads}."
        )
    # required() refuses a None among them; zip leaves the optional ones to their own checks.
    names = ("Q", "K", "V", "gates")
    query, key, value, gates = (
        spec.required(_OP, n, t) for n, t in zip(names, inputs, strict=False)
    )
    for name, tensor in zip(names, (query, key, value, gates), strict=True):
        # K and V have the rank of Q; gates are [B, S, Hq] for both.
        ranks = {"Q": (3, 4), "gates": (3,)}.get(name, (len(query.shape),))
        spec.check_tensor(
            _OP, name, tensor, spec.FLOAT_TYPES if name == "Q" else (query.dtype,), ranks
        )

    # Each size may be unknown: check_equal compares only what both sides know.
    batch, seq_len, head_dim = _per_head("Q", query, q_num_heads)
    key_batch, kv_len, key_dim = _per_head("K", key, kv_num_heads)
    value_batch, value_len, value_dim = _per_head("V", value, kv_num_heads)
    spec.check_equal(_OP, "batch size of K", key_batch, batch)
    spec.check_equal(_OP, "batch size of V", value_batch, batch)
    spec.check_equal(_OP, "head size of K", key_dim, head_dim)
    spec.check_equal(_OP, "length of V", value_len, kv_len)
    spec.check_equal(_OP, "batch size of gates", gates.shape[0], batch)
    spec.check_equal(_OP, "length of gates", gates.shape[1], seq_len)
    spec.check_equal(_OP, "number of heads in gates", gates.shape[2], q_num_heads)
    _check_mask(
        optional_input(inputs, ATTN_MASK),
        (batch, q_num_heads, seq_len, spec.known(kv_len, value_len)),
    )
    lengths = optional_input(inputs, NONPAD_KV_SEQLEN)
    if lengths is not None:
        spec.check_tensor(_OP, "nonpad_kv_seqlen", lengths, spec.LENGTH_TYPES, (1,))
        spec.check_equal(_OP, "batch size of nonpad_kv_seqlen", lengths.shape[0], batch)
    ranges = optional_input(inputs, KEY_RANGES)
    if ranges is not None:
        spec.check_tensor(_OP, "key_ranges", ranges, spec.LENGTH_TYPES, (3,))
        if ranges.shape[0] != 1:
            spec.check_equal(_OP, "batch size of key_ranges", ranges.shape[0], batch)
        spec.check_equal(_OP, "length of key_ranges", ranges.shape[1], seq_len)
        spec.check_equal(_OP, "last size of key_ranges", ranges.shape[2], 2)

    # The output's sizes are taken from whichever input knows them.
    batch = spec.known(batch, key_batch, value_batch, gates.shape[0])
    seq_len = spec.known(seq_len, gates.shape[1])
    if len(query.shape) == 4:
        return (TensorType(query.dtype, (batch, q_num_heads, seq_len, value_dim)),)
    hidden = q_num_heads * value_dim if isinstance(value_dim, int) else None
    return (TensorType(query.dtype, (batch, seq_len, hidden)),)


def _per_head(name: str, tensor: TensorType, num_heads: int) -> tuple[OpDim, OpDim, OpDim]:
    """Return batch size, length and head size of Q, K or V."""
    if len(tensor.shape) == 4:
        batch, heads, length, head_dim = tensor.shape
        spec.check_equal(_OP, f"number of heads in {name}", heads, num_heads)
        return batch, length, head_dim
    batch, length, hidden = tensor.shape
    # A dynamic last axis tells no head size.
    if not isinstance(hidden, int):
        return batch, length, None
    if hidden % num_heads:
        raise ExportError(
            f"{_OP}: last size of {name} is {hidden}; expected a multiple of its {num_heads} heads."
        )
    return batch, length, hidden // num_heads


def optional_input(inputs: TensorTypes, place: int) -> TensorType | None:
    """Return the type of an input, which a node may leave out or not list at all."""
    return inputs[place] if len(inputs) > place else None


def _check_mask(mask: TensorType | None, scores: tuple[OpDim, ...]) -> None:
    if mask is None:
        return
    spec.check_tensor(_OP, "attn_mask", mask, ("bool", *spec.FLOAT_TYPES), (1, 2, 3, 4))
    # From the last axis, as numpy broadcasts: a mask may lack leading axes.
    for got, expected in zip(reversed(mask.shape), reversed(scores), strict=False):
        if isinstance(got, int) and isinstance(expected, int) and got not in (1, expected):
            raise ExportError(
                f"{_OP}: attn_mask of shape {spec.show(mask)} does not broadcast to the scores "
                f"{spec.show(TensorType(mask.dtype, scores))} [B, Hq, S, T]."
            )

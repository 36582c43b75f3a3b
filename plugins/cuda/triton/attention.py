"""MoHAttention in Triton's language: one block for the rows of a tile, as in kernels/attention.cuh.

Compiled ahead of time (compile.py) for GPUs whose matrix units mma.sync does not reach. A row is a
(query, query head) pair; a pair is a batch and a key/value head, whose rows read the same keys.
The order of the parameters is that of TritonAttentionArguments (launch/triton_attention.h).
"""

import triton
import triton.language as tl


@triton.jit
def attend(
    query,
    key,
    value,
    gates,  # [batch, query, q_head], contiguous
    output,
    rows,  # [pair, place]: ids of open rows, query * group + head in the group, ascending
    counts,  # [pair]: how many; both are read only if `listed`
    ranges,  # [batch or 1, query, 2], int64: the first key that a query sees, and the end of those
    query_batch_stride,
    query_head_stride,
    query_token_stride,
    key_batch_stride,
    key_head_stride,
    key_token_stride,
    value_batch_stride,
    value_head_stride,
    value_token_stride,
    output_batch_stride,
    output_head_stride,
    output_token_stride,
    ranges_batch,  # numbers from a batch's ranges to the next; below 0: there are no ranges
    pairs,
    q_heads,
    kv_heads,
    queries,
    keys,
    head_dim,
    value_dim,
    causal,
    listed,  # 0: all rows are computed, and a row's place is its id
    scale_log2,  # scale * log2(e)
    COLUMNS: tl.constexpr,  # head_dim and value_dim, rounded up to a power of two
    TILE_ROWS: tl.constexpr,
    TILE_KEYS: tl.constexpr,
):
    # The last tiles of all pairs come first: causal ones are the longest.
    pair = tl.program_id(0) % pairs
    turn = tl.program_id(0) // pairs
    batch = (pair // kv_heads).to(tl.int64)
    kv_head = pair % kv_heads
    group = q_heads // kv_heads
    count = queries * group
    if listed != 0:
        count = tl.load(counts + pair)
    first = (tl.cdiv(count, TILE_ROWS) - 1 - turn) * TILE_ROWS
    if first < 0:
        return

    place = first + tl.arange(0, TILE_ROWS)
    is_row = place < count
    place = tl.minimum(place, count - 1)  # rows behind the last are like it, and not stored
    row = place
    if listed != 0:
        row = tl.load(rows + pair.to(tl.int64) * queries * group + place)
    token = row // group
    head = (kv_head * group + row % group).to(tl.int64)
    gate = tl.load(gates + (batch * queries + token) * q_heads + head).to(tl.float32)
    is_open = is_row & (gate != 0)

    # Which keys a row sees, the one place that says so: those from `start` on, before `visible`.
    start = token * 0
    visible = tl.where(causal != 0, tl.maximum(keys - queries + token + 1, 0), keys)
    if ranges_batch >= 0:
        at = ranges + batch * ranges_batch + token.to(tl.int64) * 2
        # Ranges may leave the keys, by more than 32 bits hold.
        start = tl.minimum(tl.maximum(tl.load(at), 0), keys).to(tl.int32)
        visible = tl.minimum(tl.minimum(tl.maximum(tl.load(at + 1), 0), keys).to(tl.int32), visible)
    sees = is_open & (start < visible)
    end = tl.max(tl.where(sees, visible, 0), 0)
    begin = tl.min(tl.where(sees, start, end), 0) // TILE_KEYS * TILE_KEYS
    # All rows see the keys [inner, edge), whole tiles: a row that sees none is overwritten below.
    inner = tl.cdiv(tl.max(tl.where(sees, start, 0), 0), TILE_KEYS) * TILE_KEYS
    edge = tl.min(tl.where(sees, visible, end), 0) // TILE_KEYS * TILE_KEYS
    edge = tl.maximum(edge, inner)

    column = tl.arange(0, COLUMNS)
    from_query = batch * query_batch_stride + head * query_head_stride + token * query_token_stride
    queries_tile = tl.load(  # [TILE_ROWS, COLUMNS]
        query + from_query[:, None] + column[None, :], mask=column[None, :] < head_dim, other=0.0
    )
    # A change of sign is exact, and the largest product then has the largest score.
    sign = tl.where(scale_log2 < 0, -1.0, 1.0)
    queries_tile = (queries_tile.to(tl.float32) * sign).to(queries_tile.dtype)
    factor = tl.abs(scale_log2)

    key_start = key + batch * key_batch_stride + kv_head.to(tl.int64) * key_head_stride
    value_start = value + batch * value_batch_stride + kv_head.to(tl.int64) * value_head_stride
    maximum = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([TILE_ROWS], tl.float32)
    sums = tl.zeros([TILE_ROWS, COLUMNS], tl.float32)
    maximum, total, sums = _add_keys(
        queries_tile, key_start, value_start, key_token_stride, value_token_stride,
        head_dim, value_dim, start, visible, factor, maximum, total, sums,
        inner, edge, end, COLUMNS, TILE_KEYS, False,
    )  # fmt: skip
    maximum, total, sums = _add_keys(
        queries_tile, key_start, value_start, key_token_stride, value_token_stride,
        head_dim, value_dim, start, visible, factor, maximum, total, sums,
        begin, tl.minimum(inner, end), end, COLUMNS, TILE_KEYS, True,
    )  # fmt: skip
    maximum, total, sums = _add_keys(
        queries_tile, key_start, value_start, key_token_stride, value_token_stride,
        head_dim, value_dim, start, visible, factor, maximum, total, sums,
        edge, end, end, COLUMNS, TILE_KEYS, True,
    )  # fmt: skip

    # A row that sees no key has attention 0; one whose scores are all -inf has 0 / 0.
    attention = tl.where(
        (start < visible)[:, None], sums * (gate / total)[:, None], gate[:, None] * 0
    )
    result = tl.where(is_open[:, None], attention, 0.0)
    to = batch * output_batch_stride + head * output_head_stride + token * output_token_stride
    tl.store(
        output + to[:, None] + column[None, :],
        result.to(output.dtype.element_ty),
        mask=is_row[:, None] & (column[None, :] < value_dim),
    )


@triton.jit
def _add_keys(
    queries_tile, key_start, value_start, key_stride, value_stride,
    head_dim, value_dim, start, visible, factor, maximum, total, sums,
    first, last, end, COLUMNS: tl.constexpr, TILE_KEYS: tl.constexpr, IS_EDGE: tl.constexpr,
):  # fmt: skip
    """Add the keys [first, last) to a softmax over scores in base 2, and its sums of values.

    IS_EDGE: some row does not see some of them; none sees those from `end` on, which are not read.
    """
    column = tl.arange(0, COLUMNS)
    number = tl.arange(0, TILE_KEYS)
    # [COLUMNS, TILE_KEYS], and [TILE_KEYS, COLUMNS]
    key_at = key_start + number[None, :] * key_stride + column[:, None]
    value_at = value_start + number[:, None] * value_stride + column[None, :]
    # From 0: Triton (3.9) loads no tile ahead in a loop that begins at a variable.
    for step in range(0, last - first, TILE_KEYS):
        at = first + step
        is_key_part = column[:, None] < head_dim
        is_value_part = column[None, :] < value_dim
        if IS_EDGE:
            is_key_part = is_key_part & (at + number[None, :] < end)
            is_value_part = is_value_part & (at + number[:, None] < end)
        keys_tile = tl.load(key_at + at * key_stride, mask=is_key_part, other=0.0)
        scores = tl.dot(queries_tile, keys_tile)  # [TILE_ROWS, TILE_KEYS]
        if IS_EDGE:
            key = at + number[None, :]
            is_seen = (key >= start[:, None]) & (key < visible[:, None])
            scores = tl.where(is_seen, scores * factor, float("-inf"))
            largest = tl.maximum(maximum, tl.max(scores, 1))
        else:
            largest = tl.maximum(maximum, tl.max(scores, 1) * factor)
        # 0 while every score is -inf: -inf - -inf is NaN.
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        if IS_EDGE:
            weights = tl.exp2(scores - shift[:, None])
        else:
            weights = tl.exp2(scores * factor - shift[:, None])
        decay = tl.exp2(maximum - shift)
        total = total * decay + tl.sum(weights, 1)
        values_tile = tl.load(value_at + at * value_stride, mask=is_value_part, other=0.0)
        sums = tl.dot(weights.to(values_tile.dtype), values_tile, sums * decay[:, None])
        maximum = largest
    return maximum, total, sums

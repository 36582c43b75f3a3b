"""Bugs in MoHAttention's kernel."""

from functools import partial

from tests.cuda.libraries import ADDRESS
from tests.cuda.mutations.mutation import BEYOND, CRASHED, DAMAGED, WRONG, Mutation

_FLOAT = "float32"
_TILES = "AttentionSetup.*seq_len=150.*"
_attend = partial(
    Mutation,
    file="kernels/attention.cuh",
    op="MoHAttention",
    units=("attention_32",),
    cases="many_keys",
)
_mask = partial(
    Mutation, file="kernels/attention/mask.cuh", op="MoHAttention", units=("attention_32",)
)
_output = partial(
    Mutation,
    file="kernels/attention/output.cuh",
    op="MoHAttention",
    units=("attention", "attention_32"),
    cases="plain_rank3",
)
_rows = partial(
    Mutation,
    file="kernels/attention/rows.cuh",
    op="MoHAttention",
    units=("attention", "attention_32"),
    cases="grouped",
)

PIPELINE = (
    _attend(
        name="no barrier behind the list of rows",
        before="task);\n  __syncthreads();",
        after="task);",
        cases="AttentionSetup.*is_causal=True.*",
        symptom="threads wait for|lanes of a warp diverge|out of tolerance",
    ),
    _attend(
        name="no barrier before the scores",
        before="    __syncthreads();  // keys are here",
        after="    // keys are here",
    ),
    _attend(
        name="no barrier before the next keys",
        before="    __syncthreads();  // values are here",
        after="    // values are here",
    ),
    _attend(
        name="scores of keys that have not arrived",
        before="wait_for_copies<0>();\n    __syncthreads();  // keys",
        after="wait_for_copies<1>();\n    __syncthreads();  // keys",
    ),
    _attend(
        name="values are added that have not arrived",
        before="wait_for_copies<0>();\n    __syncthreads();  // values",
        after="wait_for_copies<1>();\n    __syncthreads();  // values",
    ),
    _attend(
        name="the first keys are in no group",
        before="    commit_copies();\n  }\n  for",
        after="  }\n  for",
    ),
    _attend(
        name="values are in no group",
        before="load.values(key);\n    commit_copies();",
        after="load.values(key);",
    ),
    _attend(
        name="the next keys are in no group",
        before="load.keys(next_key);\n      commit_copies();",
        after="load.keys(next_key);",
    ),
    _attend(
        name="rows of shared memory without padding",
        before="kStride = kHeadSize + TensorCore<T>::kPadding;",
        after="kStride = kHeadSize;",
        symptom="bank conflicts of matrix loads",
    ),
    _attend(
        name="rows of float32 with twice the padding",
        before="kStride = kHeadSize + TensorCore<T>::kPadding;",
        after="kStride = kHeadSize + 2 * TensorCore<T>::kPadding;",
        dtypes=_FLOAT,
        symptom="bank conflicts of matrix loads",
    ),
    Mutation(
        name="shared memory is 16 bytes short",
        file="launch/attention_heads.cuh",
        before="sizeof(Tile), stream",
        after="sizeof(Tile) - 16, stream",
        op="MoHAttention",
        units=("attention_32",),
        cases="plain_rank3",
        symptom="behind the shared memory of its block",
    ),
)

LOOP = (
    _attend(
        name="sums are not rescaled",
        before="        scale_rows(sums[product], decay);\n",
        after="",
    ),
    _attend(
        name="a tile of keys is left out",
        before="key < range.end;) {",
        after="key + kKeys <= range.end;) {",
        cases="plain_rank3",
    ),
    _attend(
        name="keys behind the last are counted",
        before="key + kKeys > warp.all.end",
        after="key > warp.all.end",
    ),
    _attend(
        name="the next causal tile is taken for one that all rows see",
        before="key + kKeys > warp.all.end",
        after="key + kKeys > warp.any.end",
        cases="AttentionSetup.*head_dim=24.*is_causal=True.*",
    ),
    _attend(
        name="a negative scale, and the largest score is taken for the maximum",
        before="!(params.scale_log2 > 0.0f)",
        after="false",
        cases="negative_scale",
    ),
    _attend(
        name="the last values of float32 are left out",
        before="kStride, warp.any.end - key);",
        after="kStride, warp.any.end - key - 8);",
        cases="cross_attention",
        dtypes=_FLOAT,
    ),
    _attend(
        name="splits overlap",
        before="first + params.keys_per_split,",
        after="first + params.keys_per_split + 1,",
    ),
    _attend(
        name="an empty split writes nothing",
        before="if (task.rows == 0) {",
        after="if (int(blockIdx.y) * params.keys_per_split >= params.args.keys) {",
        cases="plain_rank3",
    ),
    _attend(
        name="keys and values are read beyond the last",
        before="tile, Tile::kStride, end_key - key, columns",
        after="tile, Tile::kStride, Tile::kKeys, columns",
        cases="plain_rank3",
        symptom=BEYOND,
        variant=ADDRESS,
    ),
    _attend(
        name="values have the key's stride",
        before="args.value, args.value_strides, key",
        after="args.value, args.key_strides, key",
        cases="wide_values",
    ),
    _attend(
        name="offsets of keys and values have 32 bits",
        before="(key + r) * strides.token",
        after="static_cast<int>((key + r) * strides.token)",
        cases="plain_rank3",
        options=("--far-apart",),
        symptom=f"{WRONG}|{CRASHED}",
    ),
    _attend(
        name="one lane's columns say whether a row has seen a key",
        before="row_any(sight.saw[i])",
        after="sight.saw[i]",
        cases="bool_mask_by_head",
    ),
)

WIDE = (
    _attend(
        name="all products of a warp have the first one's queries",
        before="queries + product * 16 * stride + depth",
        after="queries + depth",
        cases=_TILES,
    ),
    _attend(
        name="all products of a warp have the first one's weights",
        before="weights[product] + key / 8",
        after="weights[0] + key / 8",
        cases=_TILES,
    ),
    _attend(
        name="all products of a warp see what the first one sees",
        before="warp_row + 16 * product, tiles, key",
        after="warp_row, tiles, key",
        cases="AttentionSetup.*head_dim=24.*is_causal=True.*",
    ),
    _attend(
        name="all products of a warp are written over the first",
        before="warp_row + 16 * product, range, params",
        after="warp_row, range, params",
        cases=_TILES,
    ),
    _attend(
        name="a warp ends where one of its rows no longer sees every key",
        before="key < warp.any.end;",
        after="key < warp.all.end;",
        cases="AttentionSetup.*head_dim=24.*is_causal=True.*",
    ),
)

MASK = (
    _mask(
        name="a mask's query stride is left out",
        before="rows.token[r] * mask.query",
        after="rows.token[r]",
        cases="bool_mask_rank2",
    ),
    _mask(
        name="strides of batch and head are exchanged",
        before="batch * mask.batch + rows.head[r] * mask.head",
        after="batch * mask.head + rows.head[r] * mask.batch",
        cases="bool_mask_by_head",
    ),
    _mask(
        name="every mask is believed to have keys",
        before="key * mask.key",
        after="key",
        cases="bool_mask_one_key",
    ),
    _mask(
        name="a bias stays in base e",
        before="bias * kLog2E",
        after="bias",
        cases="additive_mask_rank2",
    ),
    _mask(
        name="the lowest number becomes -inf",
        before="return fabsf(scaled) == INFINITY && fabsf(bias) != INFINITY ?",
        after="return false ?",
        cases="lowest_bias",
        dtypes=_FLOAT,
    ),
    _mask(
        name="a NaN bias hides the key",
        before="bias != -INFINITY;",
        after="bias > -INFINITY;",
        cases="nan_bias",
    ),
    _mask(
        name="a mask shows what comes later",
        before="keys.row[row].has(key) ? bias_at(row, key)",
        after="true ? bias_at(row, key)",
        cases="bool_mask_causal",
    ),
    _mask(
        name="both rows of a lane see what the first sees",
        before="use(scores[tile][i], i / 2, lane_key",
        after="use(scores[tile][i], 0, lane_key",
        cases="AttentionSetup.*head_dim=24.*is_causal=True.*",
    ),
    _mask(
        name="a lane takes its keys for the next lane's",
        before="const int lane_key = first_key + lane_index() % 4 * 2;",
        after="const int lane_key = first_key + lane_index() % 4;",
        cases="causal",
    ),
)

OUTPUT = (
    _output(
        name="the gate is not applied",
        before="gate / sum}",
        after="1.0f / sum}",
    ),
    _output(
        name="the gate is applied twice",
        before="gate / sum}",
        after="gate * gate / sum}",
    ),
    _output(
        name="a NaN gate of a query that sees nothing is closed",
        before="gate * 0.0f",
        after="0.0f",
        cases="nan_gate_blind",
    ),
    _output(
        name="a NaN gate is closed",
        before="if (gate == 0.0f) {",
        after="if (!(fabsf(gate) > 0.0f)) {",
        cases="nan_gate",
    ),
    _output(
        name="rows behind the last are written, too",
        before="smaller(task.rows - first, Block::kProductRows)",
        after="Block::kProductRows",
    ),
    _output(
        name="lanes read rows that others have not written",
        before="  __syncwarp();\n  const auto to",
        after="  const auto to",
    ),
    _output(
        name="the second half of a warp's rows is the first",
        before="(lane / 4 + 8 * i) * stride",
        after="(lane / 4) * stride",
    ),
    _output(
        name="columns behind the last are written",
        before="if (column < params.args.value_dim) {\n        to(r)",
        after="if (true) {\n        to(r)",
        symptom=f"{WRONG}|{DAMAGED}",
    ),
    _output(
        name="the last columns of a row are not written",
        before="if (column < params.args.value_dim) {\n        to(r)",
        after="if (column + 1 < params.args.value_dim) {\n        to(r)",
    ),
    _output(
        name="a row whose scores are all -inf has seen nothing, in splits",
        before="softmax.sum[i] + 1.0f : softmax.sum[i]",
        after="softmax.sum[i] : softmax.sum[i]",
        cases="inf_query_open",
    ),
    _output(
        name="partial rows of all batches are the first's",
        before="(split * pairs + pair)",
        after="(split * pairs + pair % params.args.kv_heads)",
    ),
)

ROWS = (
    _rows(
        name="offsets of 32 bits",
        before="token * strides.token",
        after="static_cast<int>(token * strides.token)",
        cases="plain_rank3",
        options=("--far-apart",),
        symptom=f"{WRONG}|{CRASHED}",
    ),
    _rows(
        name="a cache is taken to be full",
        before="if (args.nonpad_kv_seqlen == nullptr) {",
        after="if (true) {",
        cases="filled|filled_decode",
    ),
    _rows(
        name="every batch is filled as the first one is",
        before="args.nonpad_kv_seqlen[batch]",
        after="args.nonpad_kv_seqlen[0]",
        cases="filled",
    ),
    _rows(
        name="the first key behind the filled ones is seen",
        before="length < args.keys ? length : args.keys",
        after="length < args.keys ? length + 1 : args.keys",
        cases="filled",
    ),
    _rows(
        name="causal positions count from the first key",
        before="filled - (args.queries - token) + 1",
        after="token + 1",
        cases="filled_chunk",
    ),
    _rows(
        name="causal positions count from the end of the room",
        before="filled - (args.queries - token) + 1",
        after="args.keys - (args.queries - token) + 1",
        cases="filled_chunk|filled_decode",
    ),
    _rows(
        name="the causal offset has the wrong sign",
        before="filled - (args.queries - token) + 1",
        after="args.queries - filled + token + 1",
        cases="causal_more_keys",
    ),
    _rows(
        name="a query does not see its own position",
        before="filled - (args.queries - token) + 1",
        after="filled - (args.queries - token)",
        cases="causal",
    ),
    _rows(
        name="gates by key/value heads",
        before="row * args.q_heads + head",
        after="row * args.kv_heads + head",
    ),
    _rows(
        name="key/value heads are counted as query heads are",
        before="task.pair % params.args.kv_heads",
        after="task.pair % params.args.q_heads",
        symptom=f"{WRONG}|{CRASHED}",
    ),
    _rows(
        name="neighbouring query heads read different key/value heads",
        before="kv_head * params.group + id % params.group",
        after="id % params.group * params.args.kv_heads + kv_head",
    ),
    _rows(
        name="rows are in the order of heads",
        before="{id / params.group,",
        after="{id % params.args.queries,",
        cases="causal_grouped",
    ),
    _rows(
        name="the last rows are no tile",
        before="ceil_div(count, Block::kRows);",
        after="count / Block::kRows;",
    ),
    _rows(
        name="the second half of a tile sees no key",
        before="r < first + kRows; r += kWarpSize",
        after="r < first + smaller(kRows, kWarpSize); r += kWarpSize",
        cases="one_open_query|ranges_many_documents",
    ),
    _rows(
        name="gates of rows are closed, but for the first one's",
        before="r < task.rows && gate != 0.0f",
        after="r < 1 && gate != 0.0f",
    ),
    _rows(
        name="rows behind the last of a tile",
        before="task.first + smaller(r, task.rows - 1)",
        after="task.first + r",
        cases="plain_rank3",
        symptom=BEYOND,
        variant=ADDRESS,
    ),
)

MUTATIONS = (*PIPELINE, *LOOP, *WIDE, *MASK, *OUTPUT, *ROWS)

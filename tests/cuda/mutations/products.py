"""Bugs in what all attention kernels are made of: tiles, their products, and the softmax."""

from functools import partial

from tests.cuda.mutations.mutation import Mutation

_FLOAT = "float32"
_core = partial(
    Mutation,
    file="device/tensor_core.cuh",
    op="MoHAttention",
    units=("attention_32",),
    cases="plain_rank3",
)
_tile = partial(
    Mutation,
    file="device/tile.cuh",
    op="MoHAttention",
    units=("attention_32",),
    cases="many_keys",
)
_softmax = partial(
    Mutation,
    file="device/softmax.cuh",
    op="MoHAttention",
    units=("attention_32",),
    cases="many_keys",
)

CORE = (
    _core(
        name="values are loaded without transposition",
        before="load_matrices_x4_transposed(words, row_of_a",
        after="load_matrices_x4(words, row_of_a",
    ),
    _core(
        name="keys are loaded transposed",
        before="    load_matrices_x4(words, row_of_columns(tile, stride));\n    take",
        after="    load_matrices_x4_transposed(words, row_of_columns(tile, stride));\n    take",
    ),
    _core(
        name="matrices of a are exchanged",
        before="lane % 16 * stride + lane / 16 * kVector<T>",
        after="(lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * kVector<T>",
        cases="many_keys",
    ),
    _core(
        name="matrices of keys are exchanged",
        before="(lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * kVector<T>",
        after="lane % 16 * stride + lane / 16 * kVector<T>",
        cases="many_keys",
    ),
    _core(
        name="words of rounded weights are exchanged",
        before="a.words[2 * half] = pack<T>(sums[half][0], sums[half][1]);",
        after="a.words[2 * half] = pack<T>(sums[half][1], sums[half][0]);",
    ),
    _core(
        name="float32: the low half of b is dropped",
        before="    mma_m16n8k8_tf32(sum, a.crossed, b.low);\n",
        after="",
        dtypes=_FLOAT,
    ),
    _core(
        name="float32: the low half of a is dropped",
        before="    mma_m16n8k8_tf32(sum, a.low, b.crossed);\n",
        after="",
        dtypes=_FLOAT,
    ),
    _core(
        name="float32: rows of values in their own order",
        before="lane % 4 * 2 * stride + lane / 4",
        after="lane % 4 * stride + lane / 4",
        dtypes=_FLOAT,
    ),
    _core(
        name="float32: columns of weights in their own order",
        before="split(a, 1, sums[0][2]);\n    split(a, 2, sums[0][1]);",
        after="split(a, 1, sums[0][1]);\n    split(a, 2, sums[0][2]);",
        dtypes=_FLOAT,
    ),
    _core(
        name="float32: infinity times a low half of 0",
        before="finite ? to.high[i] : 0",
        after="to.high[i]",
        cases="inf_value_open|inf_key_open",
        dtypes=_FLOAT,
    ),
)

TILE = (
    _tile(
        name="columns behind the last are not zeros",
        before="""const bool valid = r < rows && column < columns;
        copy""",
        after="""const bool valid = r < rows;
        copy""",
    ),
    _tile(
        name="columns behind the last are the next row's",
        before="""const bool valid = r < rows && column < columns;
      tile""",
        after="""const bool valid = r < rows;
      tile""",
        cases="plain_rank3",
    ),
    _tile(
        name="the last parts of a row are not copied",
        before="part < kParts;",
        after="part < kParts - kNeighbours;",
        units=("attention_80",),
        cases="AttentionSetup.*head_dim=72.*",
    ),
    _tile(
        name="the last row of a tile is not copied",
        before="r < kRows; r += kThreads / kNeighbours",
        after="r < kRows - 1; r += kThreads / kNeighbours",
    ),
    _tile(
        name="rows are copied at the wrong stride",
        before="tile + r * stride + column",
        after="tile + r * kColumns + column",
    ),
)

SOFTMAX = (
    _softmax(
        name="maxima start at 0",
        before="float max[2] = {-INFINITY, -INFINITY};",
        after="float max[2] = {0.0f, 0.0f};",
        cases="very_negative_scores",
        dtypes=_FLOAT,
    ),
    _softmax(
        name="no maximum is subtracted",
        before="max == -INFINITY ? 0.0f : max",
        after="0.0f",
        cases="large_scores",
        dtypes=_FLOAT,
    ),
    _softmax(
        name="a tile of hidden keys turns the row into NaN",
        before="max == -INFINITY ? 0.0f : max",
        after="max",
        cases="AttentionSetup.*pattern='window'.*",
        dtypes=_FLOAT,
    ),
    _softmax(
        name="half of a row's lanes agree on the maximum",
        before="return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));",
        after="return value;",
    ),
    _softmax(
        name="half of a row's lanes are summed up",
        before="return value + __shfl_xor_sync(kAllLanes, value, 2);",
        after="return value;",
    ),
    _softmax(
        name="the sum of weights is not rescaled",
        before="rows.sum[row] * decay[row] + sum",
        after="rows.sum[row] + sum",
    ),
    _softmax(
        name="the maximum of a tile replaces that of the row",
        before="fmaxf(rows.max[row], row_max(max) * factor)",
        after="row_max(max) * factor",
        cases="very_different_tiles|AttentionSetup.*pattern='window'.*",
        dtypes=_FLOAT,
    ),
    _softmax(
        name="both rows of a lane are rescaled as the first",
        before="factor[i / 2]",
        after="factor[0]",
        cases="AttentionSetup.*head_dim=24.*gates='all'.*",
    ),
)

MUTATIONS = (*CORE, *TILE, *SOFTMAX)

"""Bugs in MoHAggregatedAttention."""

from functools import partial

from tests.cuda.libraries import ADDRESS, THREAD
from tests.cuda.mutations.mutation import BEYOND, CRASHED, DAMAGED, RACE, WRONG, Mutation

_FLOAT = "float32"
# In every type large, but finite: a row that is not finite is computed again, and right.
_UNWRITTEN = str(0x7B)
_aggregated = partial(
    Mutation,
    op="MoHAggregatedAttention",
    units=("aggregated_attention_32",),
    cases="plain",
    options=("--seeds", "1", "2", "--late-copies", "1", "--unwritten", _UNWRITTEN),
)
_kernel = partial(_aggregated, file="kernels/aggregated_attention.cuh")
_keys = partial(_aggregated, file="kernels/aggregated/keys.cuh")
_queries = partial(_aggregated, file="kernels/aggregated/queries.cuh")
_scores = partial(_aggregated, file="kernels/aggregated/scores.cuh")
_exact = partial(_aggregated, file="kernels/aggregated/exact_row.cuh")
_memory = partial(_aggregated, file="kernels/aggregated/memory.cuh")

KEYS = (
    _keys(
        name="places of the window are transposed",
        before="y * params.kernel_width + x : -1",
        after="x * params.kernel_height + y : -1",
    ),
    _keys(
        name="height and width of the window are exchanged",
        before="static_cast<unsigned>(y) < static_cast<unsigned>(params.kernel_height)",
        after="static_cast<unsigned>(y) < static_cast<unsigned>(params.kernel_width)",
        cases="kernel_5x3|kernel_3x5",
    ),
    _keys(
        name="the first row of the halo is missing",
        before="larger(work.y - params.kernel_height / 2, 0)",
        after="larger(work.y - params.kernel_height / 2 + 1, 0)",
        cases="large_image",
    ),
    _keys(
        name="the last row of the halo is missing",
        before="work.y + params.tile_height + params.kernel_height / 2",
        after="work.y + params.tile_height + params.kernel_height / 2 - 1",
        cases="large_image",
    ),
    _keys(
        name="the last column of the halo is missing",
        before="work.x + params.tile_width + params.kernel_width / 2",
        after="work.x + params.tile_width + params.kernel_width / 2 - 1",
        cases="large_image",
    ),
    _keys(
        name="positions of keys are one row off",
        before="work_.y + params_.kernel_height / 2,",
        after="work_.y + params_.kernel_height / 2 + 1,",
    ),
    _keys(
        name="rows of keys are as long as those of the image",
        before="columns_ = right - left_;",
        after="columns_ = params.width;",
        cases="large_image",
        symptom=f"{WRONG}|{CRASHED}",
    ),
    _keys(
        name="a pooled token behind the last",
        before="if (index >= count()) {",
        after="if (index > count()) {",
    ),
    _keys(
        name="pooled tokens of the first image",
        before="(is_pixel ? params_.tokens() : params_.pooled) + token",
        after="(is_pixel ? params_.tokens() : 0) + token",
    ),
    _keys(
        name="keys of the first head",
        before="row * params_.heads + work_.head",
        after="row * params_.heads",
    ),
)

SCORES = (
    _scores(
        name="the row of pooled biases of the first head",
        before="params.pooled_bias + index * params.pooled",
        after="params.pooled_bias + row.token * params.pooled",
    ),
    _scores(
        name="the key's length is not applied",
        before="query.scale * key_factor",
        after="query.scale",
    ),
    _scores(
        name="pooled biases stay in base e",
        before="kLog2E * to_float(query.pooled_bias",
        after="to_float(query.pooled_bias",
    ),
    _scores(
        name="a place outside of the window counts without a bias",
        before="""    if (place < 0) {
      return -INFINITY;
    }""",
        after="    bias = place < 0 ? 0.0f : bias;",
    ),
    _scores(
        name="keys behind the last count",
        before="  } else if (key.is_none()) {\n    return -INFINITY;\n",
        after="  } else if (key.is_none()) {\n    bias = 0.0f;\n",
    ),
)

QUERIES = (
    _queries(
        name="no epsilon for vectors of length 0",
        before="1.0f / fmaxf(sqrtf(sum), epsilon)",
        after="1.0f / sqrtf(sum)",
        cases="zero_vectors",
    ),
    _queries(
        name="epsilon is added to the length",
        before="1.0f / fmaxf(sqrtf(sum), epsilon)",
        after="1.0f / (sqrtf(sum) + epsilon)",
        cases="large_epsilon",
    ),
    _queries(
        name="three of four lanes measure a vector",
        before="i = lane_index() % 4; i < columns; i += 4",
        after="i = lane_index() % 4; i < columns; i += 5",
    ),
    _queries(
        name="what 16 bits lose of a query is dropped",
        before="from_float<T>(x - to_float(*high))",
        after="from_float<T>(0.0f)",
        cases="sharp_scale",
        dtypes="float16|bfloat16",
    ),
    _queries(
        name="the embedding of the first head",
        before="params_.query_embedding + work_.head * params_.head_dim;",
        after="params_.query_embedding;",
    ),
    _queries(
        name="window weights from queries of any length",
        before="memory_.query_factors[row] * product_with",
        after="product_with",
    ),
    _queries(
        name="a warp lists its queries over the first warp's",
        before="warp < warp_index() ? open_counts[warp] : 0",
        after="0",
        cases="large_image",
        symptom=f"{WRONG}|{DAMAGED}|{CRASHED}",
    ),
    _queries(
        name="a lane counts itself among those before it",
        before="(1u << lane_index()) - 1",
        after="(2u << lane_index()) - 1",
        symptom=f"{WRONG}|{DAMAGED}|{CRASHED}",
    ),
    _queries(
        name="no barrier between counting and listing open queries",
        before="  __syncthreads();\n  int row",
        after="  int row",
        cases="large_image",
        symptom=f"{WRONG}|{CRASHED}",
    ),
    _queries(
        name="no barrier behind the lengths of queries",
        before="    __syncthreads();\n    if (params_.weighs_window())",
        after="    if (params_.weighs_window())",
    ),
    _queries(
        name="queries change while windows are weighed",
        before="weigh_windows();\n      __syncthreads();",
        after="weigh_windows();",
    ),
    _queries(
        name="closed rows keep every other channel",
        before="i < channels; i += kWarpSize",
        after="i < channels; i += 2 * kWarpSize",
        units=("aggregated_attention_64",),
        cases="head_dim_37",
    ),
    _queries(
        name="a NaN gate is closed",
        before="return gate != 0.0f;",
        after="return fabsf(gate) > 0.0f;",
        cases="nan_gate",
    ),
    _queries(
        name="pixels behind the last column are queries",
        before="work.x + x < params.width",
        after="true",
        cases="large_image",
        symptom=f"{WRONG}|{DAMAGED}",
    ),
)

KERNEL = (
    _kernel(
        name="the gate is applied twice",
        before="query.gate * attended",
        after="query.gate * query.gate * attended",
    ),
    _kernel(
        name="rows behind the last are written",
        before="if (channel < channels && row(pair) == row_index(pair)) {",
        after="if (channel < channels) {",
    ),
    _kernel(
        name="channels behind the last are written",
        before="if (channel < channels && row(pair) == row_index(pair)) {",
        after="if (row(pair) == row_index(pair)) {",
        symptom=f"{WRONG}|{DAMAGED}",
    ),
    _kernel(
        name="the second row of a lane is rated as the first",
        before="rows_of_lanes(lanes) << 8 * pair",
        after="rows_of_lanes(lanes)",
        cases="nan_value_at_the_edge",
    ),
    _kernel(
        name="rows that are not finite stay as they are",
        before="for (; again != 0;",
        after="for (; false;",
        cases="nan_value_at_the_edge",
    ),
    _kernel(
        name="sums are not rescaled",
        before="    scale_rows(sums_, decay);\n",
        after="",
    ),
    _kernel(
        name="what 16 bits lose of a window's weight is dropped",
        before="sizeof(T) == 2 ? 2 : 1",
        after="1",
        cases="plain|window_weights_only|large_vectors",
        dtypes="float16|bfloat16",
    ),
    _kernel(
        name="window weights only where the first tile is",
        before="tile * Sizes::kKeys < keys.pixels()",
        after="tile == 0",
        cases="large_image",
    ),
    _kernel(
        name="all tiles of keys go to the first stage",
        before="const int stage = tile % Sizes::kStages, first",
        after="const int stage = 0, first",
    ),
    _kernel(
        name="products with keys that have not arrived",
        before="wait_for_copies<Sizes::kStages - 1>();",
        after="wait_for_copies<Sizes::kStages>();",
        cases="head_dim_24",
    ),
    _kernel(
        name="queries are changed before they arrive",
        before="wait_for_copies<1>();",
        after="wait_for_copies<2>();",
        cases="head_dim_24",
    ),
    _kernel(
        name="queries are in one group with the first keys",
        before="queries.load();\n  commit_copies();",
        after="queries.load();",
        cases="head_dim_24",
    ),
    _kernel(
        name="the next keys are in no group",
        before="    commit_copies();\n    wait_for_copies<Sizes",
        after="    wait_for_copies<Sizes",
        cases="head_dim_24",
    ),
    _kernel(
        name="no barrier before the products",
        before="wait_for_copies<Sizes::kStages - 1>();\n    __syncthreads();",
        after="wait_for_copies<Sizes::kStages - 1>();",
        cases="head_dim_24",
    ),
    _kernel(
        name="no barrier behind the lengths of keys",
        before="params.epsilon);\n      __syncthreads();",
        after="params.epsilon);",
        options=("--seeds", "1"),
        symptom=RACE,
        variant=THREAD,
    ),
    _kernel(
        name="the next keys come while others are read",
        before="    __syncthreads();\n    if (Sizes::kStages == 1",
        after="    if (Sizes::kStages == 1",
        cases="head_dim_24|large_image",
    ),
    _kernel(
        name="no barrier behind the list of queries",
        before="  __syncthreads();\n\n  const BlockQueries",
        after="  const BlockQueries",
        symptom=f"{WRONG}|{CRASHED}",
    ),
    _kernel(
        name="keys are read beyond the last",
        before="Sizes::kStride, count, params.head_dim,",
        after="Sizes::kStride, Sizes::kKeys, params.head_dim,",
        symptom=BEYOND,
        variant=ADDRESS,
    ),
    _kernel(
        name="each block has the values' first channels",
        before="return keys.value(first + r) + first_channel;",
        after="return keys.value(first + r);",
        units=("aggregated_attention_256",),
        cases="head_dim_139",
    ),
    _memory(
        name="keys without padding",
        before="kStride = kHeadDim + TensorCore<T>::kPadding",
        after="kStride = kHeadDim",
        symptom="bank conflicts of matrix loads",
    ),
    _memory(
        name="values without padding",
        before="kValueStride = kChannels + TensorCore<T>::kPadding",
        after="kValueStride = kChannels",
        symptom="bank conflicts of matrix loads",
    ),
    _memory(
        name="shared memory is 16 bytes short",
        before="return AggregatedMemory(nullptr, params).end_;",
        after="return AggregatedMemory(nullptr, params).end_ - 16;",
        cases="nothing_optional",
        symptom="behind the shared memory of its block",
    ),
)

EXACT = (
    _exact(
        name="a row that is computed again has no window weights",
        before="/ sum + window_weight(index)",
        after="/ sum",
        cases="nan_key|nan_value_at_the_edge",
    ),
    _exact(
        name="keys that are not seen take part again",
        before="place(index) >= 0 : index",
        after="true : index",
        cases="nan_value_at_the_edge",
    ),
    _exact(
        name="a row that is computed again has no gate",
        before="row.gate * sums[i]",
        after="sums[i]",
        cases="nan_value_at_the_edge",
    ),
    _exact(
        name="the vector is read before it is there",
        before="      vector_[d] = x;\n    }\n    __syncwarp();",
        after="      vector_[d] = x;\n    }",
        cases="nan_value_at_the_edge",
    ),
)

MUTATIONS = (*KEYS, *SCORES, *QUERIES, *KERNEL, *EXACT)

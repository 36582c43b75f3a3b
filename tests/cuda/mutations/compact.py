"""Bugs around MoHAttention's kernel: in the list of rows, key splits and launches."""

from functools import partial

from tests.cuda.mutations.mutation import CRASHED, DAMAGED, WRONG, Mutation

_compact = partial(
    Mutation,
    file="kernels/compact.cuh",
    op="MoHAttention",
    units=("attention",),
    cases="grouped",
    symptom=f"{WRONG}|{CRASHED}",
)
_combine = partial(
    Mutation, file="kernels/combine.cuh", op="MoHAttention", units=("attention",), cases="many_keys"
)
_plan = partial(
    Mutation,
    file="launch/attention_plan.cu",
    op="MoHAttention",
    units=("attention_plan",),
    cases="plain_rank3",
)
_launch = partial(
    Mutation,
    file="launch/attention.cu",
    op="MoHAttention",
    units=("attention",),
    cases="plain_rank3",
)

COMPACT = (
    _compact(
        name="no barrier between counting and listing open rows",
        before="    __syncthreads();\n#pragma unroll",
        after="#pragma unroll",
        cases="sparse_routing",
        options=("--seeds", "0", "1", "2", "3"),
    ),
    _compact(
        name="one buffer for the counts of all chunks",
        before="shared.counts[chunk % 2]",
        after="shared.counts[0]",
        cases="AttentionSetup.*seq_len=4200.*",
        options=("--seeds", "0"),
    ),
    _compact(
        name="a warp counts its own rows among those before it",
        before="lane < warp_index() ? count : 0",
        after="lane <= warp_index() ? count : 0",
    ),
    _compact(
        name="a lane counts itself among those before it",
        before="(1u << lane_index()) - 1",
        after="(2u << lane_index()) - 1",
    ),
    _compact(
        name="each chunk lists its rows at the start",
        before="listed + prefix.before",
        after="prefix.before",
        cases="AttentionSetup.*seq_len=4200.*",
    ),
    _compact(
        name="the last chunk is left out",
        before="chunk * kCompactChunk < params.rows_per_pair",
        after="(chunk + 1) * kCompactChunk <= params.rows_per_pair",
    ),
    _compact(
        name="a thread lists the row of its first turn in every turn",
        before="            first_id + turn * kCompactThreads;",
        after="            first_id;",
        cases="AttentionSetup.*seq_len=4200.*",
    ),
    _compact(
        name="a NaN gate is not listed, nor a negative one",
        before="+ id % params.group) != 0.0f;",
        after="+ id % params.group) > 0.0f;",
        cases="nan_gate",
    ),
    _compact(
        name="gates of another group's heads",
        before="pair % args.kv_heads * params.group",
        after="pair % args.kv_heads",
    ),
    _compact(
        name="zeros for every other part of a row",
        before="i += kWarpSize",
        after="i += 2 * kWarpSize",
        cases="wide_heads",
    ),
    _compact(
        name="zeros for the first token of a warp only",
        before="token < tokens; token += warps",
        after="token < 1; token += warps",
    ),
    _compact(
        name="zeros in the wrong batch",
        before="token / args.queries",
        after="token / (args.queries + 1)",
    ),
)

COMBINE = (
    _combine(
        name="values of splits are added as they are",
        before="""+ column] *
               exp2_approx(parts.max(split) - shift);""",
        after="+ column];",
    ),
    _combine(
        name="sums of splits are added as they are",
        before="parts.sum(split) * exp2_approx(parts.max(split) - shift)",
        after="parts.sum(split)",
    ),
    _combine(
        name="the last split alone says whether a key was seen",
        before="seen |= parts.sum",
        after="seen = parts.sum",
        cases="plain_rank3",
    ),
    _combine(
        name="maxima lie as close as rows",
        before="2 * stride,",
        after="stride,",
    ),
    _combine(
        name="closed rows are left as they are",
        before="output[column] = from_float<T>(0.0f);",
        after="",
    ),
    _combine(
        name="a row behind the last",
        before="place >= count",
        after="place > count",
        cases="all_open",
        symptom=f"{DAMAGED}|{CRASHED}",
    ),
    _combine(
        name="the gate is applied once more",
        before="scaled(value, scale)",
        after="gate * scaled(value, scale)",
    ),
)

PLAN = (
    _plan(
        name="a split has too few keys",
        before="round_up(ceil_div(args.keys, splits), kKeysUnit)",
        after="round_up(args.keys / splits, kKeysUnit)",
        cases="AttentionSetup.*kv_len=193.*",
    ),
    _plan(
        name="partial rows as wide as values",
        before="return round_up(args.value_dim, 8);",
        after="return args.value_dim;",
    ),
    _plan(
        name="room for one split",
        before="choice.key_splits > 1 ? static_cast<size_t>(choice.key_splits) * rows : 0",
        after="choice.key_splits > 1 ? rows : 0",
        symptom=f"{DAMAGED}|{CRASHED}",
    ),
    _plan(
        name="no block for the last rows",
        before="ceil_div(params.rows_per_pair, rows_of(choice.block))",
        after="params.rows_per_pair / rows_of(choice.block)",
        symptom="a grid of 0",
    ),
    _plan(
        name="every row is copied by 16 bytes",
        before="reinterpret_cast<uintptr_t>(data) % 16 == 0 &&",
        after="true ||",
        symptom="an address is not a multiple of 16",
    ),
    _launch(
        name="no block for the last rows to combine",
        before="ceil_div(params.rows_per_pair, kCombineRows);",
        after="(params.rows_per_pair / kCombineRows);",
    ),
    _launch(
        name="no block for the last tokens' zeros",
        before="ceil_div<int64_t>(tokens, kCompactWarps)",
        after="tokens / kCompactWarps",
    ),
    _launch(
        name="a head size for queries only",
        file="launch/attention_heads.h",
        before="std::max(args.head_dim, args.value_dim)",
        after="args.head_dim",
        cases="AttentionSetup.*value_dim=40.*",
    ),
)

MUTATIONS = (*COMPACT, *COMBINE, *PLAN)

"""Bugs in MoHRouter."""

from functools import partial

from tests.cuda.libraries import THREAD
from tests.cuda.mutations.mutation import RACE, WRONG, Mutation

_router = partial(
    Mutation,
    file="kernels/router.cuh",
    op="MoHRouter",
    units=("router",),
    cases="two_stage",
    symptom=f"{WRONG}|head_counts grew",
)

MUTATIONS = (
    _router(
        name="ties go to the highest head",
        before="(j < i && !(own > other))",
        after="(j > i && !(own > other))",
        cases="tied_logits",
    ),
    _router(
        name="one head too many",
        before="params_.routed) < params_.top_k",
        after="params_.routed) <= params_.top_k",
    ),
    _router(
        name="no maximum is subtracted",
        before="largest = warp_max(largest);",
        after="largest = 0.0f;",
        cases="large_logits",
    ),
    _router(
        name="the maximum starts at 0",
        before="float largest = -INFINITY;",
        after="float largest = 0.0f;",
        cases="very_negative_logits",
    ),
    _router(
        name="each lane has a maximum of its own",
        before="  largest = warp_max(largest);\n",
        after="",
    ),
    _router(
        name="weights of the stage are exchanged",
        before="{factor * shared, factor * routed}",
        after="{factor * routed, factor * shared}",
    ),
    _router(
        name="weights of the stage sum up to 1",
        before="2.0f / (shared + routed)",
        after="1.0f / (shared + routed)",
    ),
    _router(
        name="shared gates are not weighed by their number",
        before="static_cast<float>(size) * probabilities_[i]",
        after="probabilities_[i]",
    ),
    _router(
        name="routed gates are not weighed by top_k",
        before="static_cast<float>(params_.top_k) * (chosen_[i] / divisor)",
        after="chosen_[i] / divisor",
    ),
    _router(
        name="heads behind the last are what was there before",
        before="      if (i >= size) {",
        after="      if (false) {",
        cases="fewer_routed",
    ),
    _router(
        name="the last heads are compared with nobody",
        before="j < size; j += 4",
        after="j + 4 <= size; j += 4",
    ),
    _router(
        name="heads are ranked before all probabilities are there",
        before="    __syncwarp();\n    const float sum",
        after="    const float sum",
    ),
    _router(
        name="warps share their rows",
        before="rows + 2 * warp * memory.row, memory.row",
        after="rows + warp * memory.row, memory.row",
    ),
    _router(
        name="heads are counted before the counts are 0",
        before="  __syncthreads();\n\n  const int64_t step",
        after="  const int64_t step",
        options=("--seeds", "1"),
        symptom=RACE,
        variant=THREAD,
    ),
    _router(
        name="counts are added before all heads are counted",
        before="  __syncthreads();\n  for (int i",
        after="  for (int i",
    ),
    _router(
        name="counts do not start at 0",
        before="    counts[i] = 0;\n",
        after="",
    ),
    Mutation(
        name="shared memory is 16 bytes short",
        file="launch/router.cu",
        before="memory.bytes(warps), stream",
        after="memory.bytes(warps) - 16, stream",
        op="MoHRouter",
        units=("router",),
        cases="two_stage",
        symptom="behind the shared memory of its block",
    ),
)

#include "cuda/launch/aggregated_attention_heads.cuh"

template moh::cuda::Status moh::cuda::launch_attend_to_neighbours<64>(
    const AggregatedAttentionArgs&, Stream);

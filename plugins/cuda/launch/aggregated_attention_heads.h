// Launches of the aggregated attention's kernel, compiled by head size.
#pragma once

#include "cuda/launch/status.h"
#include "moh/aggregated_attention.h"

namespace moh::cuda {

// For heads of up to kHeadSize. The arguments are checked; there is something to compute.
template <int kHeadSize>
Status launch_attend_to_neighbours(const AggregatedAttentionArgs& args, Stream stream);

}  // namespace moh::cuda

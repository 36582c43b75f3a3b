// Launches of the attention kernel, compiled by head size.
#pragma once

#include "cuda/device/port.cuh"

#include "cuda/kernels/attention/params.h"

namespace moh::cuda {

// For heads of up to kHeadSize.
template <int kHeadSize>
cudaError_t launch_attend(const AttentionParams& params, dim3 blocks, cudaStream_t stream);

}  // namespace moh::cuda

// Included by one .cu file for each head size.
#pragma once

#include "cuda/kernels/attention.cuh"
#include "cuda/launch/attention_heads.h"
#include "cuda/launch/status.h"

namespace moh::cuda {

template <class T, int kHeadSize>
cudaError_t launch_attend_of(const AttentionParams& params, dim3 blocks, cudaStream_t stream) {
  using Tile = AttentionTile<T, kHeadSize>;
  static_assert(sizeof(Tile) <= kMaxSharedBytes);
  const auto kernel =
      params.args.mask.data == nullptr ? attend<T, kHeadSize, false> : attend<T, kHeadSize, true>;
  return launch(kernel, blocks, dim3(kAttentionThreads), sizeof(Tile), stream, params);
}

template <int kHeadSize>
cudaError_t launch_attend(const AttentionParams& params, dim3 blocks, cudaStream_t stream) {
  return with_type(params.args.dtype, [&](auto type) {
    return launch_attend_of<decltype(type), kHeadSize>(params, blocks, stream);
  });
}

}  // namespace moh::cuda

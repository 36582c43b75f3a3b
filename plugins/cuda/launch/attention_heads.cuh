// Included by one .cu file for each head size.
#pragma once

#include "cuda/kernels/attention.cuh"
#include "cuda/launch/attention_heads.h"
#include "cuda/launch/status.h"

namespace moh::cuda {

// Whether 32 rows of a warp leave their sums within its registers.
template <class T, int kHeadSize>
constexpr bool kHasWideWarps = sizeof(T) == 2 && kHeadSize <= 128;

// Calls call(Block(), std::bool_constant<whether there is a mask for queries>()) for a block that
// has_block.
template <class T, int kHeadSize, class Call>
auto with_block(AttentionBlock block, bool masked, const Call& call) {
  if constexpr (kHasWideWarps<T, kHeadSize>) {
    if (block == AttentionBlock::k64By32) {
      return call(Block<64, 32>(), std::false_type());
    }
    if (block == AttentionBlock::k128By32) {
      return call(Block<128, 32>(), std::false_type());
    }
  }
  return masked ? call(Block<64, 16>(), std::true_type())
                : call(Block<64, 16>(), std::false_type());
}

template <int kHeadSize>
cudaError_t launch_attend(const AttentionParams& params, AttentionBlock block, dim3 blocks,
                          cudaStream_t stream) {
  return with_type(params.args.dtype, [&](auto type) {
    using T = decltype(type);
    return with_block<T, kHeadSize>(
        block, has_query_mask(params.args), [&](auto shape, auto masked) {
          using Shape = decltype(shape);
          using Tile = AttentionTile<T, kHeadSize, Shape>;
          static_assert(sizeof(Tile) <= kMaxSharedBytes);
          return launch(attend<T, kHeadSize, Shape, decltype(masked)::value>, blocks,
                        dim3(Shape::kThreads), sizeof(Tile), stream, params);
        });
  });
}

template <int kHeadSize>
AttendKernel attend_kernel(const AttentionArgs& args, AttentionBlock block) {
  return with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    return with_block<T, kHeadSize>(block, has_query_mask(args), [](auto shape, auto masked) {
      using Shape = decltype(shape);
      using Tile = AttentionTile<T, kHeadSize, Shape>;
      constexpr int kResident = kResidentBlocks<T, kHeadSize, Shape, decltype(masked)::value>;
      return AttendKernel{kHeadSize,   Shape::kRows, Shape::kWarpRows,
                          Tile::kKeys, sizeof(Tile), kResident};
    });
  });
}

}  // namespace moh::cuda

// Launches of the attention kernel, compiled by head size.
#pragma once

#include "cuda/device/port.cuh"

#include <algorithm>
#include <type_traits>

#include "cuda/kernels/attention/params.h"
#include "moh/cuda.h"

namespace moh::cuda {

// Whether attn_mask is the same for all queries and heads, as that of padding is: [B, 1, 1, T] or
// less. The kernels without a mask take it; every other mask needs one of its own.
inline bool has_key_mask(const AttentionArgs& args) {
  const AttentionMask& mask = args.mask;
  return mask.data != nullptr && mask.head == 0 && mask.query == 0 && mask.key == 1;
}
inline bool has_query_mask(const AttentionArgs& args) {
  return args.mask.data != nullptr && !has_key_mask(args);
}

// What the kernel of a head size and block is compiled for.
struct AttendKernel {
  int32_t head_size;  // of queries, keys and values: zeros behind the tensors' own
  int32_t rows, warp_rows;
  int32_t tile_keys;
  int32_t shared_bytes;
  int32_t resident_blocks;  // of a multiprocessor, as far as registers go
};

// For heads of up to kHeadSize, and a block that they have.
template <int kHeadSize>
cudaError_t launch_attend(const AttentionParams& params, AttentionBlock block, dim3 blocks,
                          cudaStream_t stream);
template <int kHeadSize>
AttendKernel attend_kernel(const AttentionArgs& args, AttentionBlock block);

// Calls call(std::integral_constant<int, the head size whose kernels take tensors like these>()).
template <class Call>
auto with_head_size(const AttentionArgs& args, const Call& call) {
  const int32_t size = std::max(args.head_dim, args.value_dim);
  return size <= 32    ? call(std::integral_constant<int, 32>())
         : size <= 64  ? call(std::integral_constant<int, 64>())
         : size <= 80  ? call(std::integral_constant<int, 80>())
         : size <= 96  ? call(std::integral_constant<int, 96>())
         : size <= 128 ? call(std::integral_constant<int, 128>())
         : size <= 192 ? call(std::integral_constant<int, 192>())
                       : call(std::integral_constant<int, 256>());
}

inline AttendKernel attend_kernel_of(const AttentionArgs& args, AttentionBlock block) {
  return with_head_size(
      args, [&](auto size) { return attend_kernel<decltype(size)::value>(args, block); });
}

}  // namespace moh::cuda

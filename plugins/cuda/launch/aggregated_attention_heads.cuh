// Included by one .cu file for each head size.
#pragma once

#include "cuda/kernels/aggregated_attention.cuh"
#include "cuda/launch/aggregated_attention_heads.h"
#include "moh/op_contract.h"

namespace moh::cuda {

struct TileShape {
  int32_t height, width;
};

// Pixels that the windows of tiles hold, summed over the tiles along one side of the image.
inline int64_t keys_along(int32_t size, int32_t tile, int32_t kernel) {
  int64_t sum = 0;
  for (int32_t first = 0; first < size; first += tile) {
    sum += smaller(first + tile + kernel / 2, size) - larger(first - kernel / 2, 0);
  }
  return sum;
}

// The tile of at most `rows` pixels with the least work: keys of all blocks, where a block costs
// another `rows` to start.
inline TileShape choose_tile(const AggregatedAttentionArgs& args, int32_t rows) {
  TileShape best{1, 1};
  int64_t least = INT64_MAX;
  for (int32_t height = 1; height <= smaller(rows, args.height); ++height) {
    const int32_t width = smaller(rows / height, args.width);
    const int64_t blocks =
        static_cast<int64_t>(ceil_div(args.height, height)) * ceil_div(args.width, width);
    const int64_t work = keys_along(args.height, height, args.kernel_height) *
                             keys_along(args.width, width, args.kernel_width) +
                         blocks * (args.pooled + rows);
    if (work < least) {
      least = work;
      best = {height, width};
    }
  }
  return best;
}

inline bool are_vectors(const void* data, size_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(data) | row_bytes) % 16 == 0;
}

template <class T>
AggregatedParams<T> to_params(const AggregatedAttentionArgs& args, TileShape tile) {
  const size_t row_bytes = sizeof(T) * static_cast<size_t>(args.head_dim);
  AggregatedParams<T> params;
  params.query = static_cast<const T*>(args.query);
  params.key = static_cast<const T*>(args.key);
  params.value = static_cast<const T*>(args.value);
  params.pooled_key = static_cast<const T*>(args.pooled_key);
  params.pooled_value = static_cast<const T*>(args.pooled_value);
  params.gates = static_cast<const T*>(args.gates);
  params.query_embedding = static_cast<const T*>(args.query_embedding);
  params.query_scale = static_cast<const T*>(args.query_scale);
  params.window_bias = static_cast<const T*>(args.window_bias);
  params.pooled_bias = static_cast<const T*>(args.pooled_bias);
  params.window_tokens = static_cast<const T*>(args.window_tokens);
  params.window_offset = static_cast<const T*>(args.window_offset);
  params.output = static_cast<T*>(args.output);
  params.heads = args.heads;
  params.head_dim = args.head_dim;
  params.height = args.height;
  params.width = args.width;
  params.kernel_height = args.kernel_height;
  params.kernel_width = args.kernel_width;
  params.pooled = args.pooled;
  params.tile_height = tile.height;
  params.tile_width = tile.width;
  params.normalize = args.normalize;
  params.epsilon = args.epsilon;
  params.query_vectors = are_vectors(args.query, row_bytes);
  params.key_vectors = are_vectors(args.key, row_bytes) && are_vectors(args.value, row_bytes) &&
                       are_vectors(args.pooled_key, row_bytes) &&
                       are_vectors(args.pooled_value, row_bytes);
  return params;
}

template <class T, int kHeadSize>
Status launch_attend_to_neighbours_of(const AggregatedAttentionArgs& args, Stream stream) {
  using Sizes = AggregatedSizes<T, kHeadSize>;
  const AggregatedParams<T> params = to_params<T>(args, choose_tile(args, Sizes::kRows));
  const size_t shared_bytes = AggregatedMemory<T, kHeadSize>::bytes(params);
  const int64_t blocks = static_cast<int64_t>(params.tile_rows()) * params.tile_columns() *
                         ceil_div(args.head_dim, Sizes::kChannels) * args.heads * args.batch;
  if (blocks > INT32_MAX) {
    return fail(Status::kUnsupported, "MoHAggregatedAttention: %lld blocks; the limit is %d.",
                static_cast<long long>(blocks), INT32_MAX);
  }
  return launch_status(
      launch(attend_to_neighbours<T, kHeadSize>, dim3(static_cast<unsigned>(blocks)),
             dim3(Sizes::kThreads), shared_bytes, stream, params),
      contract::aggregated_attention::kOp.name);
}

template <int kHeadSize>
Status launch_attend_to_neighbours(const AggregatedAttentionArgs& args, Stream stream) {
  return with_type(args.dtype, [&](auto type) {
    return launch_attend_to_neighbours_of<decltype(type), kHeadSize>(args, stream);
  });
}

}  // namespace moh::cuda

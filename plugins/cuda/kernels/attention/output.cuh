// What becomes of a row's sums.
#pragma once

#include "cuda/device/softmax.cuh"
#include "cuda/kernels/attention/rows.cuh"

namespace moh::cuda {

// sum of weights * values -> output.
struct RowScale {
  bool computed;  // false: the output is `factor` itself
  float factor;
};

// seen: any key. Attention of a row is 0 if it sees no key, undefined if all its scores are -inf.
__device__ __forceinline__ RowScale row_scale(float gate, bool seen, float max, float sum) {
  if (gate == 0.0f) {
    return {false, 0.0f};
  }
  if (!seen) {
    return {false, gate * 0.0f};
  }
  return {true, max == -INFINITY ? NAN : gate / sum};
}

__device__ __forceinline__ float scaled(float value, const RowScale& scale) {
  return scale.computed ? value * scale.factor : scale.factor;
}

// Writes the 16 rows of a product, from `first` on: through shared memory, where each warp has room
// for its own, so that 16 bytes go out at a time.
template <class T, int kHeadSize, int kTiles, class Block>
__device__ __forceinline__ void write_rows(T* staging, int stride, const float (&sums)[kTiles][4],
                                           const RowScale (&scales)[2], int first,
                                           const AttentionParams& params, const Task& task,
                                           const TileRows<Block>& rows) {
  const int lane = lane_index();
  T* staged = staging + first * stride;
  __syncwarp();
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      store_pair(staged + (lane / 4 + 8 * i) * stride + tile * 8 + lane % 4 * 2,
                 scaled(sums[tile][2 * i], scales[i]), scaled(sums[tile][2 * i + 1], scales[i]));
    }
  }
  __syncwarp();
  const auto to = [&](int r) {
    return output_row<T>(params.args, task.batch, rows.head[first + r], rows.token[first + r]);
  };
  const int count = smaller(task.rows - first, Block::kProductRows);
  if (params.output_vectors) {
    constexpr int kParts = kHeadSize / kVector<T>;
    for (int i = lane; i < count * kParts; i += kWarpSize) {
      const int r = i / kParts, column = i % kParts * kVector<T>;
      if (column < params.args.value_dim) {
        *reinterpret_cast<uint4*>(to(r) + column) =
            *reinterpret_cast<const uint4*>(staged + r * stride + column);
      }
    }
  } else {
    for (int i = lane; i < count * kHeadSize; i += kWarpSize) {
      const int r = i / kHeadSize, column = i % kHeadSize;
      if (column < params.args.value_dim) {
        to(r)[column] = staged[r * stride + column];
      }
    }
  }
}

// Where a row's partial result is.
__device__ __forceinline__ int64_t partial_index(const AttentionParams& params, int split, int pair,
                                                 int place) {
  const int64_t pairs = int64_t{params.args.batch} * params.args.kv_heads;
  return (split * pairs + pair) * params.rows_per_pair + place;
}

// Of rows with closed gates, nothing is written.
template <int kTiles, class Block>
__device__ __forceinline__ void write_partials(const float (&sums)[kTiles][4],
                                               const RowPair& softmax, const bool (&seen)[2],
                                               int first, const AttentionParams& params,
                                               const Task& task, const TileRows<Block>& rows) {
  const Partials& partials = params.partials;
  const int lane = lane_index();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = first + lane / 4 + 8 * i;
    if (r >= task.rows || !rows.is_open(r)) {
      continue;
    }
    const int64_t index = partial_index(params, blockIdx.y, task.pair, task.first + r);
    if (lane % 4 == 0) {
      // All scores -inf: not 0, which is for a row that sees no key.
      const float sum =
          seen[i] && softmax.max[i] == -INFINITY ? softmax.sum[i] + 1.0f : softmax.sum[i];
      store_pair(partials.max_and_sum + 2 * index, softmax.max[i], sum);
    }
    float* to = partials.output + index * partials.columns;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile * 8 < partials.columns) {
        store_pair(to + tile * 8 + lane % 4 * 2, sums[tile][2 * i], sums[tile][2 * i + 1]);
      }
    }
  }
}

}  // namespace moh::cuda

// Combines the results of key splits, applies gates and writes rows: a warp a row.
#pragma once

#include "cuda/kernels/attention/output.cuh"

namespace moh::cuda {

constexpr int kCombineThreads = 128;
constexpr int kCombineRows = kCombineThreads / kWarpSize;

// The results of a row's splits.
struct RowPartials {
  const float* max_and_sum;
  const float* output;
  int64_t stat_stride, output_stride;  // from one split to the next
  int splits;

  __device__ __forceinline__ float max(int split) const { return max_and_sum[split * stat_stride]; }
  __device__ __forceinline__ float sum(int split) const {
    return max_and_sum[split * stat_stride + 1];
  }
};

__device__ __forceinline__ RowPartials partials_of(const AttentionParams& params, int pair,
                                                   int place) {
  const Partials& partials = params.partials;
  const int64_t index = partial_index(params, 0, pair, place);
  const int64_t stride = partial_index(params, 1, pair, place) - index;
  return {partials.max_and_sum + 2 * index, partials.output + partials.columns * index, 2 * stride,
          partials.columns * stride, params.splits};
}

// gate * what the splits give together.
template <class T>
__device__ __forceinline__ void write_combined(T* row, const RowPartials& parts, float gate,
                                               int value_dim) {
  float max = -INFINITY;
  for (int split = 0; split < parts.splits; ++split) {
    max = fmaxf(max, parts.max(split));
  }
  const float shift = shift_of(max);
  float sum = 0.0f;
  bool seen = false;
  for (int split = 0; split < parts.splits; ++split) {
    sum += parts.sum(split) * exp2_approx(parts.max(split) - shift);
    seen |= parts.sum(split) != 0.0f;
  }
  const RowScale scale = row_scale(gate, seen, max, sum);
  for (int column = lane_index(); column < value_dim; column += kWarpSize) {
    float value = 0.0f;
    for (int split = 0; split < parts.splits; ++split) {
      value += parts.output[split * parts.output_stride + column] *
               exp2_approx(parts.max(split) - shift);
    }
    row[column] = from_float<T>(scaled(value, scale));
  }
}

template <class T>
__global__ void __launch_bounds__(kCombineThreads) combine(const AttentionParams params) {
  const AttentionArgs& args = params.args;
  const int blocks_per_pair = ceil_div(params.rows_per_pair, kCombineRows);
  const int pair = static_cast<int>(blockIdx.x) / blocks_per_pair;
  const int place = static_cast<int>(blockIdx.x) % blocks_per_pair * kCombineRows + warp_index();
  const int count = params.rows == nullptr ? params.rows_per_pair : params.counts[pair];
  if (place >= count) {
    return;
  }
  const int batch = pair / args.kv_heads;
  const Row row = row_at_place(params, pair, place);
  const float gate = gate_at<T>(args, batch, row.token, row.head);
  T* output = output_row<T>(args, batch, row.head, row.token);
  if (gate == 0.0f) {
    for (int column = lane_index(); column < args.value_dim; column += kWarpSize) {
      output[column] = from_float<T>(0.0f);
    }
  } else {
    write_combined(output, partials_of(params, pair, place), gate, args.value_dim);
  }
}

}  // namespace moh::cuda

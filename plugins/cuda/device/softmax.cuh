// Softmax over scores that come tile by tile, in base 2.
//
// A lane has the scores of two rows of a warp's sums (tensor_core.cuh); the four lanes of a row
// work together, in step. Scores of hidden keys are -inf. NaN stays NaN: it is passed over by the
// maximum, and reaches the sum.
#pragma once

#include "cuda/device/port.cuh"

namespace moh::cuda {

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}

__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

__device__ __forceinline__ bool row_any(bool value) {
  value |= __shfl_xor_sync(kAllLanes, static_cast<int>(value), 1) != 0;
  return value | (__shfl_xor_sync(kAllLanes, static_cast<int>(value), 2) != 0);
}

// What is subtracted for a maximum: 0 where every score is -inf, since -inf - -inf is NaN.
__device__ __forceinline__ float shift_of(float max) { return max == -INFINITY ? 0.0f : max; }

// Of a row so far: the largest score, and the sum of weights 2^(score - max).
struct RowPair {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};  // of this lane's columns
};

// Turns a tile of scores, times factor > 0, into weights, and gives by what the weights of earlier
// tiles have become smaller.
template <int kTiles>
__device__ __forceinline__ void add_scores(RowPair& rows, float (&scores)[kTiles][4], float factor,
                                           float (&decay)[2]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float max = -INFINITY;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      max = fmaxf(max, fmaxf(scores[tile][2 * row], scores[tile][2 * row + 1]));
    }
    max = fmaxf(rows.max[row], row_max(max) * factor);
    const float shift = shift_of(max);
    decay[row] = exp2_approx(rows.max[row] - shift);
    rows.max[row] = max;
    float sum = 0.0f;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 2 * row; i < 2 * row + 2; ++i) {
        scores[tile][i] = exp2_approx(fmaf(scores[tile][i], factor, -shift));
        sum += scores[tile][i];
      }
    }
    rows.sum[row] = rows.sum[row] * decay[row] + sum;
  }
}

template <int kTiles>
__device__ __forceinline__ void scale_rows(float (&sums)[kTiles][4], const float (&factor)[2]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[tile][i] *= factor[i / 2];
    }
  }
}

}  // namespace moh::cuda

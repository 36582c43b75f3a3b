// Which scores count, and what is added to them.
#pragma once

#include <cfloat>

#include "cuda/device/softmax.cuh"
#include "cuda/kernels/attention/rows.cuh"

namespace moh::cuda {

// Of a lane's two rows of a product: whether the mask for queries left this lane a key.
struct Sight {
  bool saw[2] = {false, false};
};

// A mask's element as a bias in base 2.
template <class M>
__device__ __forceinline__ float bias_of(M mask) {
  const float bias = to_float(mask);
  const float scaled = bias * kLog2E;
  // A large finite bias, often the lowest number, stays finite: a row of nothing else is an
  // ordinary softmax.
  return fabsf(scaled) == INFINITY && fabsf(bias) != INFINITY ? copysignf(FLT_MAX, bias) : scaled;
}
template <>
__device__ __forceinline__ float bias_of<uint8_t>(uint8_t mask) {
  return mask != 0 ? 0.0f : -INFINITY;
}

// Calls use(score, row of the lane, key). kTogether: tiles whose loads may be on their way at a
// time.
template <int kTogether, int kTiles, class Use>
__device__ __forceinline__ void for_each_score(float (&scores)[kTiles][4], int first_key, Use use) {
  const int lane_key = first_key + lane_index() % 4 * 2;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      use(scores[tile][i], i / 2, lane_key + tile * 8 + i % 2);
    }
    if (tile % kTogether == kTogether - 1) {
      __syncwarp();
    }
  }
}

// Of a lane's two rows, what they see of the keys. Not kept from tile to tile: few tiles ask.
template <class Block>
struct LaneKeys {
  KeyRange row[2];

  __device__ __forceinline__ LaneKeys(const TileRows<Block>& rows, int first_row)
      : row{rows.keys[first_row + lane_index() / 4], rows.keys[first_row + lane_index() / 4 + 8]} {}
};

// Scores times scale; -inf where a key is hidden.
template <int kTiles, class Block>
__device__ __forceinline__ void hide_keys(float (&scores)[kTiles][4], const LaneKeys<Block>& keys,
                                          int first_key, float scale) {
  for_each_score<kTiles + 1>(scores, first_key, [&](float& score, int row, int key) {
    score = keys.row[row].has(key) ? score * scale : -INFINITY;
  });
}

// Calls call(pointer to the elements of a mask).
template <class Call>
__device__ __forceinline__ auto with_elements(const AttentionMask& mask, const Call& call) {
  switch (mask.dtype) {
    case DType::kFloat32:
      return call(static_cast<const float*>(mask.data));
    case DType::kFloat16:
      return call(static_cast<const __half*>(mask.data));
    case DType::kBFloat16:
      return call(static_cast<const __nv_bfloat16*>(mask.data));
    default:
      return call(static_cast<const uint8_t*>(mask.data));
  }
}

// Scores times scale plus bias_at(row of the lane, key), where a row sees the key. `saw`: it is not
// hidden, either.
template <int kTiles, class Block, class BiasAt>
__device__ __forceinline__ void add_bias(float (&scores)[kTiles][4], bool (&saw)[2],
                                         const LaneKeys<Block>& keys, int first_key, float scale,
                                         const BiasAt& bias_at) {
  for_each_score<2>(scores, first_key, [&](float& score, int row, int key) {
    const float bias = keys.row[row].has(key) ? bias_at(row, key) : -INFINITY;
    const bool seen = bias != -INFINITY;
    score = seen ? fmaf(score, scale, bias) : -INFINITY;
    saw[row] |= seen;
  });
}

template <int kTiles, class Block>
__device__ __forceinline__ void add_mask(float (&scores)[kTiles][4], Sight& sight,
                                         const TileRows<Block>& rows, int first_row, int first_key,
                                         float scale, const AttentionMask& mask, int batch) {
  ptrdiff_t at[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = first_row + lane_index() / 4 + 8 * i;
    at[i] = batch * mask.batch + rows.head[r] * mask.head + rows.token[r] * mask.query;
  }
  with_elements(mask, [&](auto* elements) {
    add_bias(scores, sight.saw, LaneKeys<Block>(rows, first_row), first_key, scale,
             [&](int row, int key) { return bias_of(elements[at[row] + key * mask.key]); });
  });
}

// The same for a mask of keys, which is one for all rows of a batch.
template <int kTiles, class Block>
__device__ __forceinline__ void add_key_mask(float (&scores)[kTiles][4],
                                             const LaneKeys<Block>& keys, int first_key,
                                             float scale, const AttentionMask& mask, int batch) {
  with_elements(mask, [&](auto* elements) {
    elements += batch * mask.batch;
    bool saw[2] = {};  // not asked for, but add_bias reads it
    add_bias(scores, saw, keys, first_key, scale,
             [&](int, int key) { return bias_of(elements[key]); });
  });
}

}  // namespace moh::cuda

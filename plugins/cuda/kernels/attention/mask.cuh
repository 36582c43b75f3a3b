// Which scores count, and what is added to them.
#pragma once

#include <cfloat>

#include "cuda/device/softmax.cuh"
#include "cuda/kernels/attention/rows.cuh"

namespace moh::cuda {

// Of a lane's two rows of a product.
struct Sight {
  int visible[2];                // keys up to the row's position
  ptrdiff_t mask_row[2] = {};    // where its row of the mask begins, in elements
  bool saw[2] = {false, false};  // whether the mask left this lane a key. Kept with a mask only
};

template <class Block>
__device__ __forceinline__ Sight sight_of_lane(const AttentionArgs& args,
                                               const TileRows<Block>& rows, int first_row,
                                               const Task& task) {
  Sight sight;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = first_row + lane_index() / 4 + 8 * i;
    sight.visible[i] = visible_keys(args, task.keys, rows.token[r]);
    sight.mask_row[i] = task.batch * args.mask.batch + rows.head[r] * args.mask.head +
                        rows.token[r] * args.mask.query;
  }
  return sight;
}

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

// Calls use(score, row of the lane, key).
template <int kTiles, class Use>
__device__ __forceinline__ void for_each_score(float (&scores)[kTiles][4], int first_key, Use use) {
  const int lane_key = first_key + lane_index() % 4 * 2;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      use(scores[tile][i], i / 2, lane_key + tile * 8 + i % 2);
    }
  }
}

// Scores times scale; -inf where a key is hidden.
template <int kTiles>
__device__ __forceinline__ void hide_keys(float (&scores)[kTiles][4], const Sight& sight,
                                          int first_key, float scale) {
  for_each_score(scores, first_key, [&](float& score, int row, int key) {
    score = key < sight.visible[row] ? score * scale : -INFINITY;
  });
}

template <class M, int kTiles>
__device__ __forceinline__ void add_mask_of(float (&scores)[kTiles][4], Sight& sight, int first_key,
                                            float scale, const AttentionMask& mask) {
  const M* data = static_cast<const M*>(mask.data);
  for_each_score(scores, first_key, [&](float& score, int row, int key) {
    const bool visible = key < sight.visible[row];
    const float bias = visible ? bias_of(data[sight.mask_row[row] + key * mask.key]) : -INFINITY;
    const bool seen = bias != -INFINITY;
    score = seen ? fmaf(score, scale, bias) : -INFINITY;
    sight.saw[row] |= seen;
  });
}

// Scores times scale, plus the mask.
template <int kTiles>
__device__ __forceinline__ void add_mask(float (&scores)[kTiles][4], Sight& sight, int first_key,
                                         float scale, const AttentionMask& mask) {
  switch (mask.dtype) {
    case DType::kBool:
      return add_mask_of<uint8_t>(scores, sight, first_key, scale, mask);
    case DType::kFloat32:
      return add_mask_of<float>(scores, sight, first_key, scale, mask);
    case DType::kFloat16:
      return add_mask_of<__half>(scores, sight, first_key, scale, mask);
    case DType::kBFloat16:
      return add_mask_of<__nv_bfloat16>(scores, sight, first_key, scale, mask);
  }
}

}  // namespace moh::cuda

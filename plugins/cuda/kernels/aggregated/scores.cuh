// Scores of a block's queries and a tile of keys, in units of log 2, as softmax.cuh wants them.
#pragma once

#include "cuda/device/softmax.cuh"
#include "cuda/kernels/aggregated/memory.cuh"

namespace moh::cuda {

// One query, as a lane or a warp sees it.
template <class T>
struct AggregatedQuery {
  Pixel position;
  float scale;           // of scores
  const T* pooled_bias;  // [pooled] or null

  __device__ AggregatedQuery(const AggregatedParams<T>& params, const AggregatedWork& work,
                             const QueryRow& row)
      : position(row.position), scale(kLog2E), pooled_bias(nullptr) {
    const int64_t index = static_cast<int64_t>(work.head) * params.tokens() + row.token;
    if (params.query_scale != nullptr) {
      scale *= to_float(params.query_scale[index]);
    }
    if (params.pooled_bias != nullptr) {
      pooled_bias = params.pooled_bias + index * params.pooled;
    }
  }
};

// The score from the product of query and key; -inf for a key that the query does not see.
template <class T>
__device__ __forceinline__ float score_of(const AggregatedParams<T>& params,
                                          const AggregatedQuery<T>& query, KeyLabel key,
                                          float product, float key_factor,
                                          const float* window_bias) {
  float bias = 0.0f;
  if (key.is_pixel()) {
    const int place = place_in_window(params, key, query.position);
    bias = place < 0 ? -INFINITY : window_bias[place];
    if (place < 0) {
      return -INFINITY;
    }
  } else if (key.is_none()) {
    return -INFINITY;
  } else if (query.pooled_bias != nullptr) {
    bias = kLog2E * to_float(query.pooled_bias[key.pooled_index()]);
  }
  return fmaf(product, query.scale * key_factor, bias);
}

}  // namespace moh::cuda

// One query after the other, product by product, as docs/ops.md defines it.
//
// A tensor core multiplies all keys and values of a tile with all queries, also those that a query
// does not see: with weight 0, which NaN and Inf turn into NaN. Rows that do not come out finite
// are computed again here, where nothing is read but what the query sees.
#pragma once

#include "cuda/device/warp.cuh"
#include "cuda/kernels/aggregated/queries.cuh"
#include "cuda/kernels/aggregated/scores.cuh"

namespace moh::cuda {

// A row of one warp; all lanes call together.
template <class T, int kHeadDim>
class ExactRow {
  using Memory = AggregatedMemory<T, kHeadDim>;
  using Sizes = AggregatedSizes<T, kHeadDim>;

 public:
  __device__ ExactRow(const AggregatedParams<T>& params, const AggregatedWork& work,
                      const Memory& memory, const BlockKeys<T>& keys, int row)
      : params_(params),
        work_(work),
        memory_(memory),
        keys_(keys),
        row_(row),
        query_(params, work, memory.rows[row]),
        vector_(memory.vectors + warp_index() * kHeadDim) {}

  // Writes the channels of the block.
  __device__ void compute(int first_channel, int channels) {
    load_vector();
    const float max = find_max();
    const float sum = sum_weights(max);
    float sums[kLaneChannels] = {};
    for (int first = 0; first < keys_.count(); first += kWarpSize) {
      const int index = first + lane_index();
      float weight = 0.0f;
      const bool seen = sees(index);
      if (seen) {
        weight = exp2_approx(score(index) - max) / sum + window_weight(index);
      }
      add_values(sums, first, __ballot_sync(kAllLanes, seen), weight, first_channel, channels);
    }
    write(sums, first_channel, channels);
  }

 private:
  static constexpr int kLaneChannels = (Sizes::kChannels + kWarpSize - 1) / kWarpSize;

  // vector = q' + query_embedding, in float32
  __device__ void load_vector() {
    const QueryRow& row = memory_.rows[row_];
    const T* query = params_.query + query_offset(params_, work_, row.token);
    __syncwarp();  // The last row is done with it.
    for (int d = lane_index(); d < params_.head_dim; d += kWarpSize) {
      float x = to_float(query[d]) * memory_.query_factors[row_];
      if (params_.query_embedding != nullptr) {
        x += to_float(params_.query_embedding[work_.head * params_.head_dim + d]);
      }
      vector_[d] = x;
    }
    __syncwarp();
  }

  __device__ int place(int index) const {
    return place_in_window(params_, keys_.label(index), query_.position);
  }

  __device__ bool sees(int index) const {
    return index < keys_.pixels() ? place(index) >= 0 : index < keys_.count();
  }

  __device__ float score(int index) const {
    const T* key = keys_.key(index);
    float product = 0.0f, square = 0.0f;
    for (int d = 0; d < params_.head_dim; ++d) {
      const float x = to_float(key[d]);
      product = fmaf(vector_[d], x, product);
      square = fmaf(x, x, square);
    }
    const float factor = params_.normalize ? 1.0f / fmaxf(sqrtf(square), params_.epsilon) : 1.0f;
    return score_of(params_, query_, keys_.label(index), product, factor, memory_.window_bias);
  }

  __device__ float window_weight(int index) const {
    const int at = params_.weighs_window() ? place(index) : -1;
    return at < 0 ? 0.0f : memory_.window_weights[row_ * params_.places() + at];
  }

  __device__ float find_max() const {
    float max = -INFINITY;
    for (int index = lane_index(); index < keys_.count(); index += kWarpSize) {
      if (sees(index)) {
        max = fmaxf(max, score(index));
      }
    }
    return warp_max(max);
  }

  __device__ float sum_weights(float max) const {
    float sum = 0.0f;
    for (int index = lane_index(); index < keys_.count(); index += kWarpSize) {
      if (sees(index)) {
        sum += exp2_approx(score(index) - max);
      }
    }
    return warp_sum(sum);
  }

  // Adds the values of the keys first + i, i in `seen`, times the weight of lane i.
  __device__ void add_values(float (&sums)[kLaneChannels], int first, uint32_t seen, float weight,
                             int first_channel, int channels) const {
    for (; seen != 0; seen &= seen - 1) {
      const int lane = __ffs(seen) - 1;
      const float factor = __shfl_sync(kAllLanes, weight, lane);
      const T* value = keys_.value(first + lane) + first_channel;
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
        const int channel = lane_index() + i * kWarpSize;
        if (channel < channels) {
          sums[i] = fmaf(factor, to_float(value[channel]), sums[i]);
        }
      }
    }
  }

  __device__ void write(const float (&sums)[kLaneChannels], int first_channel, int channels) const {
    const QueryRow& row = memory_.rows[row_];
    T* output = params_.output + query_offset(params_, work_, row.token) + first_channel;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      const int channel = lane_index() + i * kWarpSize;
      if (channel < channels) {
        output[channel] = from_float<T>(row.gate * sums[i]);
      }
    }
  }

  const AggregatedParams<T>& params_;
  const AggregatedWork& work_;
  const Memory& memory_;
  const BlockKeys<T>& keys_;
  int row_;
  AggregatedQuery<T> query_;
  float* vector_;
};

}  // namespace moh::cuda

// MoHAggregatedAttention: a block has a tile of neighbouring queries of one head. Its keys are all
// pixels that any of their windows holds, and the pooled tokens. docs/ops.md says what is computed,
// ADR 13 why this way.
#pragma once

#include "cuda/kernels/aggregated/exact_row.cuh"
#include "cuda/kernels/aggregated/queries.cuh"
#include "cuda/kernels/aggregated/scores.cuh"

namespace moh::cuda {

// The products of one warp: 16 queries of the block with all its keys.
template <class T, int kHeadDim>
class AggregatedWarp {
  using Memory = AggregatedMemory<T, kHeadDim>;
  using Sizes = AggregatedSizes<T, kHeadDim>;
  using Core = TensorCore<T>;
  static constexpr int kKeyColumns = Sizes::kKeys / 8;  // 8 columns each, in the sums
  static constexpr int kChannelColumns = Sizes::kChannels / 8;
  static constexpr int kValueSteps = Sizes::kKeys / Core::kDepth;
  static constexpr int kWindowParts = sizeof(T) == 2 ? 2 : 1;

 public:
  __device__ AggregatedWarp(const AggregatedParams<T>& params, const AggregatedWork& work,
                            const Memory& memory, int rows)
      : params_(params),
        memory_(memory),
        first_row_(warp_index() * 16),
        rows_(rows),
        queries_{{params, work, memory.rows[row(0)]}, {params, work, memory.rows[row(1)]}} {}

  __device__ bool has_rows() const { return first_row_ < rows_; }

  // Adds a tile of keys and values. `has_pixels`: some of them are in the image.
  __device__ void add_tile(int stage, bool has_low_queries, bool has_pixels, int channels) {
    const KeyLabel* labels = memory_.labels + stage * Sizes::kKeys;
    float scores[kKeyColumns][4] = {};
    multiply_with_keys(scores, stage, has_low_queries);
    finish_scores(scores, labels);
    float decay[2];
    add_scores(softmax_, scores, 1.0f, decay);
    scale_rows(sums_, decay);
    multiply_with_values(scores, stage, channels);
    if (has_pixels && params_.weighs_window()) {
      multiply_window_with_values(stage, labels, channels);
    }
  }

  // Writes `channels` of the rows, and gives a bit for each that is not finite.
  __device__ uint32_t write(const AggregatedWork& work, int first_channel, int channels) {
    uint32_t not_finite = 0;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const bool finite = write_row(pair, work, first_channel, channels);
      const uint32_t lanes = __ballot_sync(kAllLanes, !finite && row(pair) == row_index(pair));
      not_finite |= rows_of_lanes(lanes) << 8 * pair;
    }
    return not_finite;
  }

  __device__ int first_row() const { return first_row_; }

 private:
  __device__ int row_index(int pair) const { return first_row_ + lane_index() / 4 + 8 * pair; }
  // Rows without a query repeat the last one's position.
  __device__ int row(int pair) const { return smaller(row_index(pair), rows_ - 1); }

  // Bit r of the result: any of lanes 4 r to 4 r + 3.
  __device__ static uint32_t rows_of_lanes(uint32_t lanes) {
    uint32_t rows = 0;
    for (int r = 0; r < 8; ++r) {
      rows |= (lanes >> 4 * r & 0xfu) != 0 ? 1u << r : 0u;
    }
    return rows;
  }

  __device__ void multiply_with_keys(float (&scores)[kKeyColumns][4], int stage, bool has_low) {
    const T* queries = memory_.queries + first_row_ * Sizes::kStride;
    const T* keys = memory_.keys + stage * Sizes::kKeys * Sizes::kStride;
#pragma unroll 1
    for (int d = 0; d < params_.head_dim; d += Core::kDepth) {
      typename Core::A high, low;
      Core::load_a(high, queries + d, Sizes::kStride);
      if (has_low) {
        Core::load_a(low, queries + Sizes::kRows * Sizes::kStride + d, Sizes::kStride);
      }
#pragma unroll
      for (int n = 0; n < kKeyColumns; n += 2) {
        typename Core::B b[2];
        Core::load_columns(b, keys + n * 8 * Sizes::kStride + d, Sizes::kStride);
        Core::multiply_add(scores[n], high, b[0]);
        Core::multiply_add(scores[n + 1], high, b[1]);
        if (has_low) {
          Core::multiply_add(scores[n], low, b[0]);
          Core::multiply_add(scores[n + 1], low, b[1]);
        }
      }
    }
  }

  __device__ void finish_scores(float (&scores)[kKeyColumns][4], const KeyLabel* labels) const {
#pragma unroll
    for (int n = 0; n < kKeyColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + lane_index() % 4 * 2 + i % 2;
        scores[n][i] = score_of(params_, queries_[i / 2], labels[column], scores[n][i],
                                memory_.key_factors[column], memory_.window_bias);
      }
    }
  }

  // sums += weights V
  __device__ void multiply_with_values(const float (&weights)[kKeyColumns][4], int stage,
                                       int channels) {
#pragma unroll
    for (int step = 0; step < kValueSteps; ++step) {
      typename Core::A a;
      Core::round_to_a(a, weights + step * (Core::kDepth / 8));
      add_values(sums_, a, stage, step, channels);
    }
  }

  // window_sums += window weights V. A loop, not unrolled, as the weights need registers.
  __device__ void multiply_window_with_values(int stage, const KeyLabel* labels, int channels) {
#pragma unroll 1
    for (int step = 0; step < kValueSteps; ++step) {
      typename Core::A parts[kWindowParts];
      load_window_weights(parts, labels + step * Core::kDepth);
#pragma unroll
      for (int part = 0; part < kWindowParts; ++part) {
        add_values(window_sums_, parts[part], stage, step, channels);
      }
    }
  }

  __device__ void add_values(float (&sums)[kChannelColumns][4], const typename Core::A& a,
                             int stage, int step, int channels) {
    const T* values =
        memory_.values + (stage * Sizes::kKeys + step * Core::kDepth) * Sizes::kValueStride;
#pragma unroll
    for (int n = 0; n < kChannelColumns; n += 2) {
      if (n * 8 < channels) {
        typename Core::B b[2];
        Core::load_rows(b, values + n * 8, Sizes::kValueStride);
        Core::multiply_add(sums[n], a, b[0]);
        Core::multiply_add(sums[n + 1], a, b[1]);
      }
    }
  }

  // Weights of any size, so what 16 bits lose is a second part.
  __device__ void load_window_weights(typename Core::A (&a)[kWindowParts],
                                      const KeyLabel* labels) const {
    float weights[Core::kDepth / 8][4];
#pragma unroll
    for (int n = 0; n < Core::kDepth / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights[n][i] = window_weight(labels[n * 8 + lane_index() % 4 * 2 + i % 2], i / 2);
      }
    }
#pragma unroll
    for (int part = 0; part < kWindowParts; ++part) {
      Core::round_to_a(a[part], weights);
#pragma unroll
      for (int n = 0; n < Core::kDepth / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          weights[n][i] -= to_float(from_float<T>(weights[n][i]));
        }
      }
    }
  }

  __device__ float window_weight(KeyLabel key, int pair) const {
    const int place = place_in_window(params_, key, queries_[pair].position);
    return place < 0 ? 0.0f : memory_.window_weights[row(pair) * params_.places() + place];
  }

  // Whether the lane's channels of the row are finite, before the gate.
  __device__ bool write_row(int pair, const AggregatedWork& work, int first_channel, int channels) {
    const QueryRow& query = memory_.rows[row(pair)];
    const float factor = 1.0f / row_sum(softmax_.sum[pair]);
    T* output = params_.output + query_offset(params_, work, query.token) + first_channel;
    bool finite = true;
#pragma unroll
    for (int n = 0; n < kChannelColumns; ++n) {
#pragma unroll
      for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
        const int channel = n * 8 + lane_index() % 4 * 2 + i % 2;
        const float attended = fmaf(sums_[n][i], factor, window_sums_[n][i]);
        if (channel < channels && row(pair) == row_index(pair)) {
          finite = finite && fabsf(attended) < INFINITY;
          output[channel] = from_float<T>(query.gate * attended);
        }
      }
    }
    return finite;
  }

  const AggregatedParams<T>& params_;
  const Memory& memory_;
  int first_row_, rows_;
  AggregatedQuery<T> queries_[2];
  RowPair softmax_;
  float sums_[kChannelColumns][4] = {};
  float window_sums_[kChannelColumns][4] = {};
};

// Starts to load tile number `tile` of the keys and values.
template <class T, int kHeadDim>
__device__ __forceinline__ void load_keys(const AggregatedParams<T>& params,
                                          const AggregatedMemory<T, kHeadDim>& memory,
                                          const BlockKeys<T>& keys, int tile, int first_channel,
                                          int channels) {
  using Sizes = AggregatedSizes<T, kHeadDim>;
  const int stage = tile % Sizes::kStages, first = tile * Sizes::kKeys;
  const int count = keys.count() - first;
  if (threadIdx.x < Sizes::kKeys) {
    memory.labels[stage * Sizes::kKeys + threadIdx.x] =
        keys.label(first + static_cast<int>(threadIdx.x));
  }
  load_tile<Sizes::kKeys, kHeadDim, Sizes::kThreads>(
      memory.keys + stage * Sizes::kKeys * Sizes::kStride, Sizes::kStride, count, params.head_dim,
      params.key_vectors, [&](int r) { return keys.key(first + r); });
  load_tile<Sizes::kKeys, Sizes::kChannels, Sizes::kThreads>(
      memory.values + stage * Sizes::kKeys * Sizes::kValueStride, Sizes::kValueStride, count,
      channels, params.key_vectors, [&](int r) { return keys.value(first + r) + first_channel; });
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(AggregatedSizes<T, kHeadDim>::kThreads,
                                  AggregatedSizes<T, kHeadDim>::kBlocks)
    attend_to_neighbours(const AggregatedParams<T> params) {
  using Sizes = AggregatedSizes<T, kHeadDim>;
  const AggregatedWork work(params, ceil_div(params.head_dim, Sizes::kChannels));
  const int first_channel = work.chunk * Sizes::kChannels;
  const int channels = smaller(Sizes::kChannels, params.head_dim - first_channel);
  const AggregatedMemory<T, kHeadDim> memory(params);

  const TilePixel<T> pixel(params, work);
  close_rows(params, work, first_channel, channels, pixel);
  const int rows = list_open_queries<Sizes::kWarps>(memory.rows, memory.open_counts, pixel);
  if (rows == 0) {
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < params.places(); i += Sizes::kThreads) {
    memory.window_bias[i] =
        params.window_bias == nullptr
            ? 0.0f
            : kLog2E * to_float(params.window_bias[work.head * params.places() + i]);
  }
  if (threadIdx.x < Sizes::kKeys) {
    memory.key_factors[threadIdx.x] = 1.0f;
  }
  __syncthreads();

  const BlockQueries<T, kHeadDim> queries(params, work, memory, rows);
  const BlockKeys<T> keys(params, work);
  queries.load();
  commit_copies();
  load_keys(params, memory, keys, 0, first_channel, channels);
  commit_copies();
  wait_for_copies<1>();
  __syncthreads();
  queries.prepare();

  AggregatedWarp<T, kHeadDim> warp(params, work, memory, rows);
  const int tiles = ceil_div(keys.count(), Sizes::kKeys);
  for (int tile = 0; tile < tiles; ++tile) {
    if (Sizes::kStages == 2 && tile + 1 < tiles) {
      load_keys(params, memory, keys, tile + 1, first_channel, channels);
    }
    commit_copies();
    wait_for_copies<Sizes::kStages - 1>();
    __syncthreads();
    const int stage = tile % Sizes::kStages;
    if (params.normalize) {
      inverse_lengths<Sizes::kKeys, Sizes::kThreads>(
          memory.key_factors, memory.keys + stage * Sizes::kKeys * Sizes::kStride, Sizes::kStride,
          params.head_dim, params.epsilon);
      __syncthreads();
    }
    if (warp.has_rows()) {
      warp.add_tile(stage, queries.has_low_tile(), tile * Sizes::kKeys < keys.pixels(), channels);
    }
    __syncthreads();
    if (Sizes::kStages == 1 && tile + 1 < tiles) {
      load_keys(params, memory, keys, tile + 1, first_channel, channels);
    }
  }

  if (warp.has_rows()) {
    uint32_t again = warp.write(work, first_channel, channels);
    __syncwarp();
    for (; again != 0; again &= again - 1) {
      ExactRow<T, kHeadDim>(params, work, memory, keys, warp.first_row() + __ffs(again) - 1)
          .compute(first_channel, channels);
    }
  }
}

}  // namespace moh::cuda

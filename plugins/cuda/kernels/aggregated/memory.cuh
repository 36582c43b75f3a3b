// How the aggregated attention uses shared memory.
#pragma once

#include "cuda/device/tensor_core.cuh"
#include "cuda/kernels/aggregated/keys.cuh"
#include "cuda/kernels/aggregated/params.cuh"

namespace moh::cuda {

// Sizes for head_dim up to kHeadDim. A block of 4 warps has 64 queries; where vectors are so long
// that these leave no room, it has 32. It computes at most 64 channels of the values: more are left
// to other blocks, which compute the same scores again.
template <class T, int kHeadDim>
struct AggregatedSizes {
  static constexpr bool kIsFloat = sizeof(T) == sizeof(float);
  static constexpr int kRows = kHeadDim * sizeof(T) <= 256 ? 64 : 32;
  static constexpr int kWarps = kRows / 16;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kKeys = 32;  // of a tile
  // Blocks that a multiprocessor has at once, at least: bounds the registers.
  static constexpr int kBlocks = kHeadDim * sizeof(T) <= 64 ? 4 : 2;
  static constexpr int kChannels = kHeadDim < 64 ? kHeadDim : 64;
  static constexpr int kChunks = kHeadDim / kChannels;
  // Queries in 16 bits have a second tile for what is lost in the first one.
  static constexpr int kQueryTiles = kIsFloat ? 1 : 2;
  static constexpr int kStages = kHeadDim * sizeof(T) <= 256 ? 2 : 1;  // of keys and values
  static constexpr int kStride = kHeadDim + TensorCore<T>::kPadding;
  static constexpr int kValueStride = kChannels + TensorCore<T>::kPadding;
};

// A query of the block.
struct QueryRow {
  int32_t token;
  Pixel position;  // in the tile
  float gate;
};

// Arrays in the block's shared memory, one behind the other.
template <class T, int kHeadDim>
struct AggregatedMemory {
  using Sizes = AggregatedSizes<T, kHeadDim>;

  T* queries;             // [kQueryTiles, kRows, kStride]
  T* keys;                // [kStages, kKeys, kStride]
  T* values;              // [kStages, kKeys, kValueStride]
  float* vectors;         // [kWarps, kHeadDim], for rows that are computed again
  KeyLabel* labels;       // [kStages, kKeys]
  float* key_factors;     // [kKeys], one over the length
  float* query_factors;   // [kRows], the same
  QueryRow* rows;         // [kRows]
  int32_t* open_counts;   // [kWarps]
  float* window_bias;     // [places], in units of log 2
  float* window_weights;  // [kRows, places], to add after the softmax, or [0]

  __host__ __device__ static size_t bytes(const AggregatedParams<T>& params) {
    return AggregatedMemory(nullptr, params).end_;
  }
  __device__ explicit AggregatedMemory(const AggregatedParams<T>& params)
      : AggregatedMemory(shared_memory(), params) {}

 private:
  __host__ __device__ AggregatedMemory(unsigned char* base, const AggregatedParams<T>& params) {
    constexpr int kKeyTiles = Sizes::kStages * Sizes::kKeys;
    take(queries, base, Sizes::kQueryTiles * Sizes::kRows * Sizes::kStride);
    take(keys, base, kKeyTiles * Sizes::kStride);
    take(values, base, kKeyTiles * Sizes::kValueStride);
    take(vectors, base, Sizes::kWarps * kHeadDim);
    take(labels, base, kKeyTiles);
    take(key_factors, base, Sizes::kKeys);
    take(query_factors, base, Sizes::kRows);
    take(rows, base, Sizes::kRows);
    take(open_counts, base, Sizes::kWarps);
    take(window_bias, base, params.places());
    take(window_weights, base,
         params.weighs_window() ? static_cast<size_t>(Sizes::kRows) * params.places() : 0);
  }

  template <class Element>
  __host__ __device__ void take(Element*& array, unsigned char* base, size_t count) {
    array = base == nullptr ? nullptr : reinterpret_cast<Element*>(base + end_);
    end_ += sizeof(Element) * count;
  }

  size_t end_ = 0;
};

}  // namespace moh::cuda

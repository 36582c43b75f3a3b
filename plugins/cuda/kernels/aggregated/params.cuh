// What a block of the aggregated attention is called with, and which part of the work is its own.
#pragma once

#include "cuda/device/integers.cuh"
#include "cuda/device/port.cuh"

namespace moh::cuda {

// Tensors as in AggregatedAttentionArgs, absent ones null.
template <class T>
struct AggregatedParams {
  const T* query;
  const T* key;
  const T* value;
  const T* pooled_key;
  const T* pooled_value;
  const T* gates;
  const T* query_embedding;
  const T* query_scale;
  const T* window_bias;
  const T* pooled_bias;
  const T* window_tokens;
  const T* window_offset;
  T* output;
  int32_t heads, head_dim, height, width, kernel_height, kernel_width, pooled;
  int32_t tile_height, tile_width;  // queries of a block, in pixels
  bool normalize;
  bool query_vectors;  // rows of queries lie so that 16 bytes can be copied at once; the same of
  bool key_vectors;    // all keys and values
  float epsilon;

  __host__ __device__ int tokens() const { return height * width; }
  __host__ __device__ int places() const { return kernel_height * kernel_width; }
  __host__ __device__ int tile_columns() const { return ceil_div(width, tile_width); }
  __host__ __device__ int tile_rows() const { return ceil_div(height, tile_height); }
  // Whether weights are added to a window's after the softmax.
  __host__ __device__ bool weighs_window() const {
    return window_tokens != nullptr || window_offset != nullptr;
  }
};

// A position in the image, or a distance, in one register.
struct Pixel {
  int32_t packed;

  __device__ static Pixel at(int y, int x) { return {y << 16 | x}; }
  __device__ int y() const { return packed >> 16; }
  __device__ int x() const { return packed & 0xffff; }
};

// The work of a block: for one head of an image, a tile of queries and some channels of its values.
struct AggregatedWork {
  int image, head, chunk;
  int y, x;  // upper left pixel of the tile

  template <class T>
  __device__ AggregatedWork(const AggregatedParams<T>& params, int chunks) {
    int64_t index = blockIdx.x;
    chunk = take(index, chunks);
    head = take(index, params.heads);
    x = take(index, params.tile_columns()) * params.tile_width;
    y = take(index, params.tile_rows()) * params.tile_height;
    image = static_cast<int>(index);
  }

 private:
  __device__ static int take(int64_t& index, int size) {
    const int digit = static_cast<int>(index % size);
    index /= size;
    return digit;
  }
};

}  // namespace moh::cuda

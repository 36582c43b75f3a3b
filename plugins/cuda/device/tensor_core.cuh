// Products of tiles on tensor cores, sums in float32: TensorCore<T> is the policy for tiles of T.
//
// A product is made of steps: a [16, kDepth] times two b [kDepth, 8], added to two sums [16, 8]. Of
// a sum, lane l of the warp has rows l / 4 and l / 4 + 8, each in columns 2 * (l % 4) and the next.
// All lanes of a warp call together.
//
// Tiles lie in shared memory, row by row. A row has a multiple of 16 elements, then kPadding more,
// which are never read: so the rows of an 8x8 matrix lie in different banks.
#pragma once

#include "cuda/device/element.cuh"
#include "cuda/device/port.cuh"
#include "cuda/device/warp.cuh"

namespace moh::cuda {

// Where a lane's matrix row is, for the four 8x8 matrices of 16-byte rows that make up
// a: rows 0-7 left, rows 8-15 left, rows 0-7 right, rows 8-15 right.
template <class T>
__device__ __forceinline__ const T* row_of_a(const T* tile, int stride) {
  const int lane = lane_index();
  return tile + lane % 16 * stride + lane / 16 * kVector<T>;
}

// The same for two b whose columns are rows of the tile: rows 0-7 left, right, rows 8-15 left,
// right.
template <class T>
__device__ __forceinline__ const T* row_of_columns(const T* tile, int stride) {
  const int lane = lane_index();
  return tile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * kVector<T>;
}

// float16 and bfloat16.
template <class T>
struct TensorCore {
  static_assert(sizeof(T) == 2, "float32 has a policy of its own");
  static constexpr int kDepth = 16;
  static constexpr int kPadding = kVector<T>;

  struct A {
    uint32_t words[4];
  };
  struct B {
    uint32_t words[2];
  };

  // a = 16 rows of a tile.
  static __device__ __forceinline__ void load_a(A& a, const T* tile, int stride) {
    load_matrices_x4(a.words, row_of_a(tile, stride));
  }

  // The columns of b = 16 rows of a tile: a product with its transpose, as with keys.
  static __device__ __forceinline__ void load_columns(B (&b)[2], const T* tile, int stride) {
    uint32_t words[4];
    load_matrices_x4(words, row_of_columns(tile, stride));
    take(b, words);
  }

  // b = kDepth rows and 16 columns of a tile, as with values.
  static __device__ __forceinline__ void load_rows(B (&b)[2], const T* tile, int stride) {
    uint32_t words[4];
    load_matrices_x4_transposed(words, row_of_a(tile, stride));
    take(b, words);
  }

  // a = kDepth columns of sums, rounded to T.
  static __device__ __forceinline__ void round_to_a(A& a, const float (*sums)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a.words[2 * half] = pack<T>(sums[half][0], sums[half][1]);
      a.words[2 * half + 1] = pack<T>(sums[half][2], sums[half][3]);
    }
  }

  static __device__ __forceinline__ void multiply_add(float (&sum)[4], const A& a, const B& b) {
    mma_m16n8k16<T>(sum, a.words, b.words);
  }

 private:
  static __device__ __forceinline__ void take(B (&b)[2], const uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      b[i / 2].words[i % 2] = words[i];
    }
  }
};

// float32 from three products of tf32: x = high + low, each of 11 significant bits, and the product
// of two lows is left out: 2^-22 of a product is lost.
template <>
struct TensorCore<float> {
  static constexpr int kDepth = 8;
  static constexpr int kPadding = kVector<float>;

  template <int kWords>
  struct Split {
    uint32_t high[kWords];
    uint32_t low[kWords];
    uint32_t crossed[kWords];  // high, for the product with a low; 0 where x is infinite: a low of
                               // 0 would turn it into NaN
  };
  using A = Split<4>;
  using B = Split<2>;

  static __device__ __forceinline__ void load_a(A& a, const float* tile, int stride) {
    uint32_t words[4];
    load_matrices_x4(words, row_of_a(tile, stride));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      split(a, i, __uint_as_float(words[i]));
    }
  }

  static __device__ __forceinline__ void load_columns(B (&b)[2], const float* tile, int stride) {
    uint32_t words[4];
    load_matrices_x4(words, row_of_columns(tile, stride));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      split(b[i / 2], i % 2, __uint_as_float(words[i]));
    }
  }

  // Rows in the order 0, 2, 4, 6, 1, 3, 5, 7, as columns in round_to_a.
  static __device__ __forceinline__ void load_rows(B (&b)[2], const float* tile, int stride) {
    const int lane = lane_index();
    const float* row = tile + lane % 4 * 2 * stride + lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      split(b[i / 2], i % 2, row[i % 2 * stride + i / 2 * 8]);
    }
  }

  // A lane of a has columns l % 4 and l % 4 + 4, a lane of a sum 2 * (l % 4) and the next: the
  // columns change their order, and nothing moves.
  static __device__ __forceinline__ void round_to_a(A& a, const float (*sums)[4]) {
    split(a, 0, sums[0][0]);
    split(a, 1, sums[0][2]);
    split(a, 2, sums[0][1]);
    split(a, 3, sums[0][3]);
  }

  static __device__ __forceinline__ void multiply_add(float (&sum)[4], const A& a, const B& b) {
    mma_m16n8k8_tf32(sum, a.low, b.crossed);
    mma_m16n8k8_tf32(sum, a.crossed, b.low);
    mma_m16n8k8_tf32(sum, a.high, b.high);
  }

 private:
  template <int kWords>
  static __device__ __forceinline__ void split(Split<kWords>& to, int i, float x) {
    const bool finite = fabsf(x) < INFINITY;
    to.high[i] = round_to_tf32(x);
    to.low[i] = finite ? round_to_tf32(x - __uint_as_float(to.high[i])) : 0;
    to.crossed[i] = finite ? to.high[i] : 0;
  }
};

}  // namespace moh::cuda

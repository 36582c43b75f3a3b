// Loads and products of matrices, a warp each.
#pragma once

#include "cuda/device/port.cuh"

namespace moh::cuda::conformance {

enum class Load { kX4, kX4Transposed, kX2, kX2Transposed };

// In: 32 rows of 4 words, then for each lane the row whose address it gives.
template <Load kLoad>
struct LoadMatrices {
  static constexpr int kThreads = 32, kIn = 32 * 4 + 32, kOut = 32 * 4, kShared = 32 * 4 * 4;

  static __device__ void run(const uint32_t* in, uint32_t* out) {
    const int lane = static_cast<int>(threadIdx.x);
    auto* tile = reinterpret_cast<uint32_t*>(shared_memory());
    for (int i = 0; i < 4; ++i) {
      tile[4 * lane + i] = in[4 * lane + i];
    }
    __syncwarp();
    const uint32_t* row = tile + 4 * in[128 + lane];
    uint32_t four[4] = {}, two[2] = {};
    if constexpr (kLoad == Load::kX4) {
      load_matrices_x4(four, row);
    } else if constexpr (kLoad == Load::kX4Transposed) {
      load_matrices_x4_transposed(four, row);
    } else if constexpr (kLoad == Load::kX2) {
      load_matrices_x2(two, row);
    } else {
      load_matrices_x2_transposed(two, row);
    }
    for (int i = 0; i < 4; ++i) {
      out[4 * lane + i] = four[i] | (i < 2 ? two[i] : 0);
    }
  }
};

enum class Product { kHalf, kBFloat16, kTf32 };

// In: for each lane sum[4], a[4], b[2].
template <Product kProduct>
struct MultiplyMatrices {
  static constexpr int kThreads = 32, kIn = 32 * 10, kOut = 32 * 4, kShared = 0;

  static __device__ void run(const uint32_t* in, uint32_t* out) {
    const uint32_t* mine = in + 10 * threadIdx.x;
    float sum[4];
    for (int i = 0; i < 4; ++i) {
      sum[i] = __uint_as_float(mine[i]);
    }
    const uint32_t a[4] = {mine[4], mine[5], mine[6], mine[7]}, b[2] = {mine[8], mine[9]};
    if constexpr (kProduct == Product::kHalf) {
      mma_m16n8k16<__half>(sum, a, b);
    } else if constexpr (kProduct == Product::kBFloat16) {
      mma_m16n8k16<__nv_bfloat16>(sum, a, b);
    } else {
      mma_m16n8k8_tf32(sum, a, b);
    }
    for (int i = 0; i < 4; ++i) {
      out[4 * threadIdx.x + static_cast<unsigned>(i)] = __float_as_uint(sum[i]);
    }
  }
};

}  // namespace moh::cuda::conformance

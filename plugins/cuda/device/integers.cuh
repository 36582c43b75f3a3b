// Whole numbers, on host and device.
#pragma once

#include "cuda/device/port.cuh"

#include <cstdint>

namespace moh::cuda {

template <class N>
__host__ __device__ constexpr N smaller(N a, N b) {
  return a < b ? a : b;
}

template <class N>
__host__ __device__ constexpr N larger(N a, N b) {
  return a < b ? b : a;
}

template <class N>
__host__ __device__ constexpr N ceil_div(N a, N b) {
  return (a + b - 1) / b;
}

template <class N>
__host__ __device__ constexpr N round_up(N a, N unit) {
  return ceil_div(a, unit) * unit;
}

}  // namespace moh::cuda

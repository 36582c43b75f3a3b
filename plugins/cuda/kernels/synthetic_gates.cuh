// Gates for measuring, where there are no real ones.
#pragma once

#include "cuda/device/element.cuh"

namespace moh::cuda {

constexpr int kSyntheticGatesThreads = 256;

template <class T>
struct SyntheticGatesParams {
  T* gates;
  int64_t count;
  uint32_t threshold;  // open where the 32 bits of a place are below it, of 2^32
  bool all_open;
};

// Bits of a place that look random, and are the same each time (the finaliser of MurmurHash3).
__device__ __forceinline__ uint32_t bits_of(int64_t place) {
  uint32_t bits = static_cast<uint32_t>(place) ^ static_cast<uint32_t>(place >> 32);
  bits = (bits ^ (bits >> 16)) * 0x85ebca6bu;
  bits = (bits ^ (bits >> 13)) * 0xc2b2ae35u;
  return bits ^ (bits >> 16);
}

template <class T>
__global__ void __launch_bounds__(kSyntheticGatesThreads)
    write_synthetic_gates(const SyntheticGatesParams<T> params) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < params.count; i += step) {
    // 0 is its own hash.
    const bool open = params.all_open || bits_of(i + 1) < params.threshold;
    params.gates[i] = from_float<T>(open ? 1.0f : 0.0f);
  }
}

}  // namespace moh::cuda

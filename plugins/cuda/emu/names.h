// Names that CUDA gives to every kernel.
#pragma once

#include <cuda_runtime_api.h>
#include <math.h>
#include <vector_functions.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cuda/emu/warp.h"

// Kernels are found by the names that the dynamic linker knows them by.
#undef __global__
#define __global__ __attribute__((visibility("default")))
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline
#undef __grid_constant__
#define __grid_constant__

// Of the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

using std::max;
using std::min;

inline void __syncthreads(MOH_PLACE) { moh::cuda::emu::synchronize_block(place); }
inline void __syncwarp(unsigned mask = 0xffffffffu, MOH_PLACE) {
  moh::cuda::emu::synchronize_warp(mask, place);
}
inline void __threadfence() { moh::cuda::emu::fence(); }
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, MOH_PLACE) {
  return moh::cuda::emu::shuffle(moh::cuda::emu::Source::kLane, mask, value, lane, width, place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, MOH_PLACE) {
  return moh::cuda::emu::shuffle(moh::cuda::emu::Source::kXor, mask, value, bits, width, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, MOH_PLACE) {
  return moh::cuda::emu::shuffle(moh::cuda::emu::Source::kUp, mask, value, static_cast<int>(delta),
                                 width, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, MOH_PLACE) {
  return moh::cuda::emu::shuffle(moh::cuda::emu::Source::kDown, mask, value,
                                 static_cast<int>(delta), width, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, MOH_PLACE) {
  return moh::cuda::emu::ballot("__ballot_sync", mask, predicate != 0, place);
}
inline int __any_sync(unsigned mask, int predicate, MOH_PLACE) {
  return moh::cuda::emu::ballot("__any_sync", mask, predicate != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, MOH_PLACE) {
  return moh::cuda::emu::ballot("__all_sync", mask, predicate != 0, place) == mask;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }

// Atomic, and no barrier for anything else.
inline int atomicAdd(int* sum, int value) {
  return __atomic_fetch_add(sum, value, __ATOMIC_RELAXED);
}
inline unsigned atomicAdd(unsigned* sum, unsigned value) {
  return __atomic_fetch_add(sum, value, __ATOMIC_RELAXED);
}
inline float atomicAdd(float* sum, float value) {
  float old, next;
  __atomic_load(sum, &old, __ATOMIC_RELAXED);
  do {
    next = old + value;
  } while (!__atomic_compare_exchange(sum, &old, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

namespace moh::cuda::emu {

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace moh::cuda::emu

inline unsigned __float_as_uint(float x) { return moh::cuda::emu::same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return moh::cuda::emu::same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return moh::cuda::emu::same_bits<float>(x); }
inline float __int_as_float(int x) { return moh::cuda::emu::same_bits<float>(x); }

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}

inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

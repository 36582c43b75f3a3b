// Numbers in memory, and in registers as float32.
#pragma once

#include <cstring>

#include "cuda/device/port.cuh"
#include "moh/tensor.h"

namespace moh::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);

template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Two neighbours of 16 bits in one register, the first in its lower half.
template <class T>
__device__ __forceinline__ uint32_t pack(float first, float second);

template <>
__device__ __forceinline__ uint32_t pack<__half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}
template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}

// Writes two neighbours, the address aligned for both.
template <class T>
__device__ __forceinline__ void store_pair(T* to, float first, float second) {
  *reinterpret_cast<uint32_t*>(to) = pack<T>(first, second);
}
template <>
__device__ __forceinline__ void store_pair<float>(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
}

// Elements in 16 bytes, which is what a thread copies at a time.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// Calls call(T()) for the type T of tensors' elements, and returns what that returns.
template <class Call>
auto with_type(DType dtype, const Call& call) {
  switch (dtype) {
    case DType::kFloat32:
      return call(float());
    case DType::kFloat16:
      return call(__half());
    default:
      return call(__nv_bfloat16());
  }
}

}  // namespace moh::cuda

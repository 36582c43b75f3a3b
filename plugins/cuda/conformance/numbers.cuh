// Functions of one number.
#pragma once

#include "cuda/device/port.cuh"

namespace moh::cuda::conformance {

struct Exp2 {
  static __device__ uint32_t of(uint32_t bits) {
    return __float_as_uint(exp2_approx(__uint_as_float(bits)));
  }
};

struct RoundToTf32 {
  static __device__ uint32_t of(uint32_t bits) { return round_to_tf32(__uint_as_float(bits)); }
};

struct FloatToHalf {
  static __device__ uint32_t of(uint32_t bits) {
    return __half_as_ushort(__float2half(__uint_as_float(bits)));
  }
};

struct HalfToFloat {
  static __device__ uint32_t of(uint32_t bits) {
    return __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(bits))));
  }
};

struct FloatToBFloat16 {
  static __device__ uint32_t of(uint32_t bits) {
    return __bfloat16_as_ushort(__float2bfloat16(__uint_as_float(bits)));
  }
};

struct BFloat16ToFloat {
  static __device__ uint32_t of(uint32_t bits) {
    return __float_as_uint(
        __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(bits))));
  }
};

// In: 32 numbers. Out: the function of each.
template <class Function>
struct Number {
  static constexpr int kThreads = 32, kIn = 32, kOut = 32, kShared = 0;

  static __device__ void run(const uint32_t* in, uint32_t* out) {
    out[threadIdx.x] = Function::of(in[threadIdx.x]);
  }
};

}  // namespace moh::cuda::conformance

// Small kernels for what nvcc makes of CUDA C++: each thread has its own element of two inputs and
// of one output.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

struct Params {
  const uint32_t* a;
  const uint32_t* b;
  uint32_t* out;
  int32_t weights[4];
};

#define KERNEL(name)                                                                             \
  static __device__ uint32_t name##_of(uint32_t a, uint32_t b, const Params& params);            \
  extern "C" __global__ void name(const Params params) {                                         \
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;                                    \
    params.out[i] = name##_of(params.a[i], params.b[i], params);                                 \
  }                                                                                              \
  static __device__ uint32_t name##_of([[maybe_unused]] uint32_t a, [[maybe_unused]] uint32_t b, \
                                       [[maybe_unused]] const Params& params)

KERNEL(divide) { return a / (b | 1) + a % (b | 1); }

KERNEL(divide_signed) {
  const int32_t x = static_cast<int32_t>(a), y = static_cast<int32_t>(b | 1);
  return static_cast<uint32_t>(x / y - x % y);
}

KERNEL(divide_by_constants) {
  return a / 7 + static_cast<uint32_t>(static_cast<int32_t>(b) / -10) +
         static_cast<uint32_t>((static_cast<uint64_t>(a) * b) / 1000003);
}

KERNEL(divide_long) {
  const int64_t x = static_cast<int64_t>(static_cast<uint64_t>(a) << 32 | b);
  const int64_t y = static_cast<int64_t>(b) - 0x80000000ll;
  return static_cast<uint32_t>(x / (y | 1) ^ x % (y | 1));
}

KERNEL(choose_by_switch) {
  switch (a % 9) {
    case 0:
      return b;
    case 1:
      return b * 3;
    case 2:
      return b ^ 0x55u;
    case 3:
      return b >> 2;
    case 4:
      return a + b;
    case 5:
      return a - b;
    case 6:
      return a * b;
    case 7:
      return ~b;
    default:
      return 17;
  }
}

KERNEL(index_an_array) {
  uint32_t values[8];
  for (int i = 0; i < 8; ++i) {
    values[(i * 5 + b) % 8] = a + i;
  }
  return values[a % 8] + static_cast<uint32_t>(params.weights[b % 4]);
}

// Rounds of Collatz's rule: every thread loops for as long as its own number takes.
KERNEL(loop) {
  uint32_t n = a % 1000 + 1, rounds = 0;
  while (n != 1 && rounds < 500) {
    n = n % 2 == 0 ? n / 2 : 3 * n + 1;
    if (n % 64 == 5) {
      continue;
    }
    ++rounds;
  }
  return rounds;
}

KERNEL(reverse_a_block) {
  __shared__ uint32_t row[256];
  extern __shared__ uint32_t more[];
  row[threadIdx.x] = a;
  more[threadIdx.x] = b;
  __syncthreads();
  const uint32_t other = blockDim.x - 1 - threadIdx.x;
  return row[other] ^ (more[other] << 1);
}

KERNEL(sum_a_block) {
  __shared__ uint32_t sums[8];
  uint32_t sum = a;
  for (int step = 16; step > 0; step /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, step);
  }
  if (threadIdx.x % 32 == 0) {
    sums[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  uint32_t total = 0;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) {
    total += sums[warp];
  }
  return total;
}

KERNEL(count_in_warp) {
  const uint32_t votes = __ballot_sync(0xffffffffu, a & 1);
  const uint32_t before = __popc(votes & ((1u << (threadIdx.x % 32)) - 1));
  return before + 100 * __any_sync(0xffffffffu, b == 3) + __reduce_add_sync(0xffffffffu, b % 7);
}

KERNEL(add_halves) {
  const __half2 x = *reinterpret_cast<const __half2*>(&a),
                y = *reinterpret_cast<const __half2*>(&b);
  const __half2 sum = __hfma2(x, y, __hadd2(x, y));
  return *reinterpret_cast<const uint32_t*>(&sum);
}

KERNEL(add_bfloats) {
  const __nv_bfloat162 x = *reinterpret_cast<const __nv_bfloat162*>(&a);
  const __nv_bfloat162 y = *reinterpret_cast<const __nv_bfloat162*>(&b);
  const __nv_bfloat162 sum = __hmul2(__hadd2(x, y), y);
  return *reinterpret_cast<const uint32_t*>(&sum);
}

KERNEL(round_to_half) {
  return __half_as_ushort(__float2half(__uint_as_float(a))) |
         static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16(__uint_as_float(b)))) << 16;
}

KERNEL(exponential) {
  const float x = static_cast<float>(static_cast<int32_t>(a) % 80);
  return __float_as_uint(expf(x + 0.125f * static_cast<float>(b % 8)));
}

KERNEL(square_root) {
  return __float_as_uint(sqrtf(static_cast<float>(a)) / (1.0f + static_cast<float>(b)));
}

KERNEL(bits) {
  return __brev(a) ^ __clz(b) ^ __byte_perm(a, b, 0x2471) ^ __funnelshift_l(a, b, a) ^ __ffs(b);
}

KERNEL(count_atomically) {
  __shared__ uint32_t counts[4];
  if (threadIdx.x < 4) {
    counts[threadIdx.x] = 0;
  }
  __syncthreads();
  atomicAdd(&counts[a % 4], b % 16);
  atomicMax(&counts[3], 5u);
  __syncthreads();
  return counts[threadIdx.x % 4];
}

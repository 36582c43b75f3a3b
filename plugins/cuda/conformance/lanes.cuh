// Shuffles, votes and bits, a warp each.
#pragma once

#include "cuda/device/port.cuh"

namespace moh::cuda::conformance {

enum class Shuffle { kLane, kXor, kUp, kDown };

// In: for each lane a value of 64 bits and an argument. Out: for widths 32, 16, ..., 2 the value
// that comes, then its upper half that comes by itself.
template <Shuffle kShuffle>
struct ShuffleLanes {
  static constexpr int kThreads = 32, kIn = 32 * 3, kWidths = 5, kOut = 32 * 3 * kWidths;
  static constexpr int kShared = 0;

  static __device__ void run(const uint32_t* in, uint32_t* out) {
    const uint32_t* mine = in + 3 * threadIdx.x;
    uint32_t* result = out + 3 * kWidths * threadIdx.x;
    const uint64_t value = mine[0] | static_cast<uint64_t>(mine[1]) << 32;
    const int argument = static_cast<int>(mine[2]);
    for (int width = 32; width > 1; width /= 2) {
      const uint64_t both = exchange(value, argument, width);
      result[0] = static_cast<uint32_t>(both);
      result[1] = static_cast<uint32_t>(both >> 32);
      result[2] = exchange(mine[1], argument, width);
      result += 3;
    }
  }

  template <class T>
  static __device__ T exchange(T value, int argument, int width) {
    if constexpr (kShuffle == Shuffle::kLane) {
      return __shfl_sync(kAllLanes, value, argument, width);
    } else if constexpr (kShuffle == Shuffle::kXor) {
      return __shfl_xor_sync(kAllLanes, value, argument, width);
    } else if constexpr (kShuffle == Shuffle::kUp) {
      return __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(argument), width);
    } else {
      return __shfl_down_sync(kAllLanes, value, static_cast<unsigned>(argument), width);
    }
  }
};

// In: a predicate for each lane. Out: ballot, any, all of all lanes; then of the lane's own half.
struct Votes {
  static constexpr int kThreads = 32, kIn = 32, kOut = 32 * 6, kShared = 0;

  static __device__ void run(const uint32_t* in, uint32_t* out) {
    const int predicate = static_cast<int>(in[threadIdx.x]);
    uint32_t* result = out + 6 * threadIdx.x;
    result[0] = __ballot_sync(kAllLanes, predicate);
    result[1] = __any_sync(kAllLanes, predicate) != 0;
    result[2] = __all_sync(kAllLanes, predicate) != 0;
    const uint32_t half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
    result[3] = __ballot_sync(half, predicate);
    result[4] = __any_sync(half, predicate) != 0;
    result[5] = __all_sync(half, predicate) != 0;
  }
};

// Out: __popc, __ffs, __clz.
struct Bits {
  static constexpr int kThreads = 32, kIn = 32, kOut = 32 * 3, kShared = 0;

  static __device__ void run(const uint32_t* in, uint32_t* out) {
    const uint32_t bits = in[threadIdx.x];
    uint32_t* result = out + 3 * threadIdx.x;
    result[0] = static_cast<uint32_t>(__popc(bits));
    result[1] = static_cast<uint32_t>(__ffs(static_cast<int>(bits)));
    result[2] = static_cast<uint32_t>(__clz(static_cast<int>(bits)));
  }
};

}  // namespace moh::cuda::conformance

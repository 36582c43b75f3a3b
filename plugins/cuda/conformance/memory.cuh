// Copies to shared memory, barriers, atomic sums.
#pragma once

#include "cuda/device/port.cuh"

namespace moh::cuda::conformance {

// Two groups of copies. The first is read before the second has to be done; every third lane's copy
// is not valid. In: 32 times 16 bytes for each group.
struct CopyAsync {
  static constexpr int kThreads = 32, kIn = 2 * 32 * 4, kOut = 2 * 32 * 4, kShared = kOut * 4;

  static __device__ void run(const uint32_t* in, uint32_t* out) {
    const unsigned lane = threadIdx.x;
    auto* tile = reinterpret_cast<uint32_t*>(shared_memory());
    for (unsigned group = 0; group < 2; ++group) {
      const unsigned at = 128 * group + 4 * lane;
      copy_async_16(tile + at, in + at, lane % 3 != 0);
      commit_copies();
    }
    wait_for_copies<1>();
    copy_neighbour(tile, out, lane);
    wait_for_copies<0>();
    copy_neighbour(tile + 128, out + 128, lane);
  }

  static __device__ void copy_neighbour(const uint32_t* tile, uint32_t* out, unsigned lane) {
    __syncwarp();
    const unsigned neighbour = (lane + 1) % 32;
    for (unsigned i = 0; i < 4; ++i) {
      out[4 * lane + i] = tile[4 * neighbour + i];
    }
  }
};

// Every thread reads what one of another warp wrote.
struct Barrier {
  static constexpr int kThreads = 128, kIn = 128, kOut = 128, kShared = 128 * 4;

  static __device__ void run(const uint32_t* in, uint32_t* out) {
    const unsigned i = threadIdx.x;
    auto* words = reinterpret_cast<uint32_t*>(shared_memory());
    words[i] = in[i];
    __syncthreads();
    out[i] = words[(i + 37) % kThreads];
  }
};

// A sum of each type in shared memory, added to by all lanes. In: int32 bits.
struct AtomicSums {
  static constexpr int kThreads = 64, kIn = 64, kOut = 3, kShared = 3 * 4;

  static __device__ void run(const uint32_t* in, uint32_t* out) {
    auto* words = reinterpret_cast<uint32_t*>(shared_memory());
    if (threadIdx.x < 3) {
      words[threadIdx.x] = 0;
    }
    __syncthreads();
    const int number = static_cast<int>(in[threadIdx.x]);
    atomicAdd(reinterpret_cast<int*>(words), number);
    atomicAdd(words + 1, in[threadIdx.x]);
    atomicAdd(reinterpret_cast<float*>(words + 2), static_cast<float>(number));
    __syncthreads();
    if (threadIdx.x < 3) {
      out[threadIdx.x] = words[threadIdx.x];
    }
  }
};

}  // namespace moh::cuda::conformance

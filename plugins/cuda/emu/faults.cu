#include "cuda/emu/faults.h"

#include <cstring>
#include <string>

#include "cuda/device/port.cuh"

namespace moh::cuda::faults {

constexpr unsigned kThreads = 64;

struct FaultParams {
  uint32_t* memory;
};

uint32_t* shared_words() { return reinterpret_cast<uint32_t*>(shared_memory()); }

// A thread reads what one of the other warp wrote.
template <bool kCorrect>
struct MissingBarrier {
  static void run(uint32_t* memory) {
    shared_words()[threadIdx.x] = threadIdx.x;
    if (kCorrect) {
      __syncthreads();
    }
    memory[threadIdx.x] = shared_words()[(threadIdx.x + 32) % kThreads];
  }
};

// A lane reads what another wrote; that a shuffle is between them orders nothing.
template <bool kCorrect>
struct MissingWarpBarrier {
  static void run(uint32_t* memory) {
    shared_words()[threadIdx.x] = threadIdx.x;
    __shfl_xor_sync(kAllLanes, 0, 1);
    if (kCorrect) {
      __syncwarp();
    }
    memory[threadIdx.x] = shared_words()[threadIdx.x ^ 1];
  }
};

// A word is overwritten while another thread may still read it.
template <bool kCorrect>
struct OverwrittenTooEarly {
  static void run(uint32_t* memory) {
    shared_words()[threadIdx.x] = threadIdx.x;
    __syncthreads();
    memory[threadIdx.x] = shared_words()[(threadIdx.x + 32) % kThreads];
    if (kCorrect) {
      __syncthreads();
    }
    shared_words()[threadIdx.x] = 1000;
  }
};

// A copy is read before it is waited for.
template <bool kCorrect>
struct CopyNotWaitedFor {
  static void run(uint32_t* memory) {
    if (threadIdx.x < 16) {
      copy_async_16(shared_words() + 4 * threadIdx.x, memory + 128 + 4 * threadIdx.x, true);
    }
    commit_copies();
    wait_for_copies<kCorrect ? 0 : 1>();
    __syncthreads();
    memory[threadIdx.x] = shared_words()[threadIdx.x];
  }
};

// Half of the lanes exchange numbers in another place of the program.
template <bool kCorrect>
struct DivergentShuffle {
  static void run(uint32_t* memory) {
    const unsigned value = threadIdx.x;
    if (kCorrect || threadIdx.x % 2 == 0) {
      memory[threadIdx.x] = __shfl_sync(kAllLanes, value, 0);
    } else {
      memory[threadIdx.x] = __shfl_sync(kAllLanes, value, 1);
    }
  }
};

template <bool kCorrect>
struct LaneExitedBefore {
  static void run(uint32_t* memory) {
    if (!kCorrect && threadIdx.x == 3) {
      return;
    }
    memory[threadIdx.x] = __ballot_sync(kAllLanes, 1);
  }
};

template <bool kCorrect>
struct LaneExitsWhileOthersWait {
  static void run(uint32_t* memory) {
    if (!kCorrect && threadIdx.x == 63) {
      return;
    }
    memory[threadIdx.x] = __shfl_xor_sync(kAllLanes, threadIdx.x, 1);
  }
};

template <bool kCorrect>
struct BarriersInBranches {
  static void run(uint32_t* memory) {
    if (kCorrect || threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    memory[threadIdx.x] = 1;
  }
};

// One warp waits for the block, the other for a lane that does, too.
template <bool kCorrect>
struct WaitForEachOther {
  static void run(uint32_t* memory) {
    if (kCorrect || threadIdx.x <= 32) {
      __syncthreads();
    } else {
      __syncwarp();
    }
    memory[threadIdx.x] = 1;
  }
};

template <bool kCorrect>
struct ShuffleReadsUnnamedLane {
  static void run(uint32_t* memory) {
    const uint32_t mask = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
    memory[threadIdx.x] = __shfl_xor_sync(mask, threadIdx.x, kCorrect ? 8 : 16);
  }
};

template <bool kCorrect>
struct SharedMemoryTooShort {
  static void run(uint32_t* memory) {
    shared_words()[threadIdx.x + (kCorrect ? 0 : 1)] = threadIdx.x;
    __syncthreads();
    memory[threadIdx.x] = threadIdx.x;
  }
};

template <bool kCorrect>
struct SharedMemoryNotWritten {
  static void run(uint32_t* memory) {
    if (kCorrect || threadIdx.x != 5) {
      shared_words()[threadIdx.x] = 0;
    }
    __syncthreads();
    memory[threadIdx.x] = shared_words()[threadIdx.x];
  }
};

template <bool kCorrect>
struct CopyBehindSharedMemory {
  static void run(uint32_t* memory) {
    if (threadIdx.x == 0) {
      copy_async_16(shared_words() + (kCorrect ? 60 : 64), memory + 128, true);
    }
    commit_copies();
    wait_for_copies<0>();
    memory[threadIdx.x] = 1;
  }
};

template <bool kCorrect>
struct MatrixRowMisaligned {
  static void run(uint32_t* memory) {
    shared_words()[threadIdx.x] = threadIdx.x;
    __syncthreads();
    uint32_t two[2];
    load_matrices_x2(two, shared_words() + 4 * (threadIdx.x % 8) + (kCorrect ? 0 : 1));
    memory[threadIdx.x] = two[0];
  }
};

// Rows 128 bytes apart begin in the same bank.
template <bool kCorrect>
struct MatrixRowsInOneBank {
  static void run(uint32_t* memory) {
    shared_words()[threadIdx.x] = threadIdx.x;
    __syncthreads();
    uint32_t two[2];
    load_matrices_x2(two,
                     shared_words() + (kCorrect ? 4 : 32) * (threadIdx.x % (kCorrect ? 8 : 2)));
    memory[threadIdx.x] = two[0];
  }
};

// Words 128 bytes apart are in the same bank.
template <bool kCorrect>
struct WordsInOneBank {
  static void run(uint32_t* memory) {
    shared_words()[threadIdx.x] = threadIdx.x;
    __syncthreads();
    const volatile uint32_t* words = shared_words();
    memory[threadIdx.x] = words[threadIdx.x % 2 * (kCorrect ? 31 : 32)];
  }
};

// Several blocks add to a word.
template <bool kCorrect>
struct BlocksWithoutAtomics {
  static void run(uint32_t* memory) {
    if (threadIdx.x == 0) {
      if (kCorrect) {
        atomicAdd(memory, 1u);
      } else {
        ++*memory;
      }
    }
  }
};

// The last block reads what the others wrote, which atomicAdd alone does not order.
template <bool kCorrect>
struct BlocksWithoutFence {
  static void run(uint32_t* memory) {
    if (threadIdx.x != 0) {
      return;
    }
    memory[128 + blockIdx.x] = blockIdx.x;
    if (kCorrect) {
      __threadfence();
    }
    if (atomicAdd(memory + 200, 1u) == gridDim.x - 1) {
      if (kCorrect) {
        __threadfence();
      }
      for (unsigned i = 0; i < gridDim.x; ++i) {
        memory[i] = memory[128 + i];
      }
    }
  }
};

template <class Fault>
__global__ void faulty_kernel(const FaultParams params) {
  Fault::run(params.memory);
}

namespace {

struct Entry {
  const char* name;
  void (*faulty)(FaultParams);
  void (*correct)(FaultParams);
};

template <template <bool> class Fault>
Entry entry(const char* name) {
  return {name, &faulty_kernel<Fault<false>>, &faulty_kernel<Fault<true>>};
}

const Entry kEntries[] = {
    entry<MissingBarrier>("missing_barrier"),
    entry<MissingWarpBarrier>("missing_warp_barrier"),
    entry<OverwrittenTooEarly>("overwritten_too_early"),
    entry<CopyNotWaitedFor>("copy_not_waited_for"),
    entry<DivergentShuffle>("divergent_shuffle"),
    entry<LaneExitedBefore>("lane_exited_before"),
    entry<LaneExitsWhileOthersWait>("lane_exits_while_others_wait"),
    entry<BarriersInBranches>("barriers_in_branches"),
    entry<WaitForEachOther>("wait_for_each_other"),
    entry<ShuffleReadsUnnamedLane>("shuffle_reads_unnamed_lane"),
    entry<SharedMemoryTooShort>("shared_memory_too_short"),
    entry<SharedMemoryNotWritten>("shared_memory_not_written"),
    entry<CopyBehindSharedMemory>("copy_behind_shared_memory"),
    entry<MatrixRowMisaligned>("matrix_row_misaligned"),
    entry<MatrixRowsInOneBank>("matrix_rows_in_one_bank"),
    entry<WordsInOneBank>("words_in_one_bank"),
    entry<BlocksWithoutAtomics>("blocks_without_atomics"),
    entry<BlocksWithoutFence>("blocks_without_fence"),
};

std::string names() {
  std::string result;
  for (const Entry& entry : kEntries) {
    result += std::string(entry.name) + "\n";
  }
  return result;
}

}  // namespace
}  // namespace moh::cuda::faults

const char* moh_emulator_faults() {
  static const std::string result = moh::cuda::faults::names();
  return result.c_str();
}

int moh_emulator_fault(const char* name, int correct, uint32_t* memory) {
  constexpr int kUnknown = -1;
  constexpr unsigned kBlocks = 8;
  for (const auto& entry : moh::cuda::faults::kEntries) {
    if (std::strcmp(entry.name, name) == 0) {
      constexpr unsigned kThreads = moh::cuda::faults::kThreads;
      const bool of_blocks = std::strncmp(name, "blocks", 6) == 0;
      return moh::cuda::launch(correct != 0 ? entry.correct : entry.faulty,
                               dim3(of_blocks ? kBlocks : 1), dim3(kThreads),
                               kThreads * sizeof(uint32_t), nullptr,
                               moh::cuda::faults::FaultParams{memory});
    }
  }
  return kUnknown;
}

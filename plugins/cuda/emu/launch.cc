#include "cuda/emu/launch.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/emu/block.h"
#include "cuda/emu/control.h"
#include "cuda/emu/names.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace moh::cuda::emu {
namespace {

// Blocks of one place run one after the other, as far as the race check can see: with several
// places it sees races between most pairs of blocks.
constexpr size_t kPlaces = kRaceCheck ? 4 : 1;

Block& block_at(size_t place) {
  static std::array<std::unique_ptr<Block>, kPlaces> blocks;
  if (blocks[place] == nullptr) {
    blocks[place] = std::make_unique<Block>();
  }
  return *blocks[place];
}

cudaError_t refuse(cudaError_t error, const std::string& reason) {
  last_error() = reason;
  return error;
}

std::string name_of(const void* kernel) {
  Dl_info info;
  return dladdr(kernel, &info) != 0 && info.dli_sname != nullptr ? info.dli_sname : "";
}

std::string sizes(dim3 size) {
  return std::to_string(size.x) + " x " + std::to_string(size.y) + " x " + std::to_string(size.z);
}

cudaError_t check(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreadsOfBlock || block.z > kMostThreadsOfBlockZ) {
    return refuse(cudaErrorInvalidConfiguration, "a block of " + sizes(block) + " threads");
  }
  if (uint64_t{grid.x} * grid.y * grid.z == 0 || grid.x > kMostBlocksX ||
      std::max(grid.y, grid.z) > kMostBlocksYZ) {
    return refuse(cudaErrorInvalidConfiguration, "a grid of " + sizes(grid) + " blocks");
  }
  if (shared_bytes > kMostSharedBytes) {
    return refuse(cudaErrorInvalidValue, std::to_string(shared_bytes) +
                                             " bytes of shared memory; every device has " +
                                             std::to_string(kMostSharedBytes));
  }
  return cudaSuccess;
}

cudaError_t call_hook(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                      const void* params, size_t params_bytes) {
  const uint32_t grid_sizes[] = {grid.x, grid.y, grid.z};
  const uint32_t block_sizes[] = {block.x, block.y, block.z};
  return static_cast<cudaError_t>(launch_hook()(name_of(kernel).c_str(), grid_sizes, block_sizes,
                                                shared_bytes, params, params_bytes));
}

// Numbers of the blocks in the order that they run in.
std::vector<uint32_t> order(dim3 size, uint32_t& seed) {
  std::vector<uint32_t> blocks(size.x * size.y * size.z);
  std::iota(blocks.begin(), blocks.end(), 0u);
  for (size_t i = blocks.size(); seed != 0 && i > 1; --i) {
    seed = seed * 1664525u + 1013904223u;
    std::swap(blocks[i - 1], blocks[(seed >> 8) % i]);
  }
  return blocks;
}

cudaError_t run(const Grid& grid) {
  uint32_t seed = options().seed;
  size_t turn = 0;
  release(&launch_tag);
  for (const uint32_t block : order(grid.size, seed)) {
    const dim3& size = grid.size;
    const uint3 index{block % size.x, block / size.x % size.y, block / (size.x * size.y)};
    const uint32_t block_seed = seed == 0 ? 0 : seed + block * 2654435761u;
    const std::string problem = block_at(turn++ % kPlaces).run(grid, index, block_seed);
    if (!problem.empty()) {
      return refuse(cudaErrorLaunchFailure, name_of(grid.kernel) + ": " + problem);
    }
  }
  acquire(&done_tag);
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_kernel(void (*call)(const void* kernel, const void* params), const void* kernel,
                          dim3 grid, dim3 block, size_t shared_bytes, const void* params,
                          size_t params_bytes) {
  ++counts().launches;
  counts().max_shared_bytes = std::max(counts().max_shared_bytes, uint64_t{shared_bytes});
  if (const cudaError_t error = check(grid, block, shared_bytes); error != cudaSuccess) {
    return error;
  }
  if (launch_hook() != nullptr) {
    return call_hook(kernel, grid, block, shared_bytes, params, params_bytes);
  }
  return run(Grid{grid, block, shared_bytes, call, kernel, params});
}

unsigned char* shared_memory() { return current_block().shared(); }

}  // namespace moh::cuda::emu

// What a launch may ask for: what every supported device has.
#pragma once

#include <cstddef>

namespace moh::cuda::emu {

constexpr size_t kMostSharedBytes = 99 * 1024;         // compute capability 8.6, 8.9, 12.0
constexpr size_t kMostSharedBytesOfCode = 227 * 1024;  // 9.0, 10.0: code for one of them
constexpr unsigned kMostThreadsOfBlock = 1024;
constexpr unsigned kMostThreadsOfBlockZ = 64;
constexpr unsigned kMostBlocksX = 0x7fffffff, kMostBlocksYZ = 65535;
constexpr size_t kMostParameterBytes = 4096;

}  // namespace moh::cuda::emu

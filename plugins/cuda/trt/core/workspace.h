// Parts of a workspace begin where any vector load may.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moh::trt {

constexpr size_t kAlignment = 256;

constexpr size_t align_up(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// An engine keeps numbers of 32 bits.
constexpr int32_t in_kib(size_t bytes) { return static_cast<int32_t>((bytes + 1023) / 1024); }
constexpr size_t from_kib(int32_t kib) { return static_cast<size_t>(kib) * 1024; }

}  // namespace moh::trt

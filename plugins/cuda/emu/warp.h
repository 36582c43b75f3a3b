// What the lanes of a warp do together, and a block.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/emu/place.h"

namespace moh::cuda::emu {

void synchronize_block(Place place);
void synchronize_warp(uint32_t mask, Place place);
void fence();

enum class Source { kLane, kXor, kUp, kDown };

// The value of the lane that source, argument and width name, as CUDA defines it.
uint64_t shuffle_bits(Source source, uint32_t mask, uint64_t value, int argument, int width,
                      Place place);

template <class T>
T shuffle(Source source, uint32_t mask, T value, int argument, int width, Place place) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle_bits(source, mask, bits, argument, width, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The lanes of the mask whose predicate is true.
uint32_t ballot(const char* name, uint32_t mask, bool predicate, Place place);

}  // namespace moh::cuda::emu

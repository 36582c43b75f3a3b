// Rows of a head lie apart in a tensor: the processor does not foresee which line of memory is
// needed next, so it is asked for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/scratch.h"

namespace moh::cpu {

// So many rows ahead of the one that is read.
constexpr ptrdiff_t kRowsAhead = 16;

enum class Access { kRead, kWrite };

// Every cache line of a row of `size` elements, which may lie outside of the tensor: none is read.
template <Access kAccess = Access::kRead, typename T>
inline void prefetch_row(const T* row, size_t size) {
  const auto begin = reinterpret_cast<uintptr_t>(row);
  for (uintptr_t line = begin / kCacheLine * kCacheLine; line < begin + size * sizeof(T);
       line += kCacheLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(line), kAccess == Access::kWrite);
  }
}

}  // namespace moh::cpu

// Matrix registers: sums[row][column] += left[row][pair] * right[pair][column], where a pair is two
// bfloat16 and sums are float32 (TDPBF16PS of AMX). Right operands and sums are as wide as vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moh::cpu {

constexpr size_t kMatrixRows = 16;
constexpr size_t kMatrixPairs = 16;

// Which registers are what: sums from kSums on, right operands from kRight on, up to 3 of each.
constexpr int kSums = 0, kLeft = 3, kRight = 4, kMatrixRegisters = 7;

constexpr size_t matrix_row_bytes(int which, size_t columns) {
  return 4 * (which == kLeft ? kMatrixPairs : columns);
}

#if defined(__x86_64__)
// Those of the processor, which belong to a thread: configured while an object lives. Written as
// assembly, since a compiler's functions for it (GCC 12) do not say that they read memory.
class AmxRegisters {
 public:
  static constexpr size_t kColumns = 16;

  AmxRegisters() {
    Configuration configuration;
    for (int which = 0; which < kMatrixRegisters; ++which) {
      configuration.row_bytes[which] = static_cast<uint16_t>(matrix_row_bytes(which, kColumns));
      configuration.rows[which] = kMatrixRows;
    }
    asm volatile("ldtilecfg %0" ::"m"(configuration));
  }
  AmxRegisters(const AmxRegisters&) = delete;
  AmxRegisters& operator=(const AmxRegisters&) = delete;
  // Otherwise the operating system would save them at each switch of threads from now on.
  ~AmxRegisters() { asm volatile("tilerelease"); }

  template <int kTo>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTo));
  }
  template <int kTo>
  static void load(const void* rows, ptrdiff_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride_bytes), "i"(kTo)
                 : "memory");
  }
  template <int kFrom>
  static void store(void* rows, ptrdiff_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride_bytes), "i"(kFrom)
                 : "memory");
  }
  template <int kSum, int kRightOperand>
  static void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft),
                 "i"(kRightOperand));
  }

 private:
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
  static_assert(sizeof(Configuration) == 64, "");
};
#endif

// The same in memory, one number after the other: what tests run where there are no others.
template <size_t kVectorLanes>
class EmulatedRegisters {
 public:
  static constexpr size_t kColumns = kVectorLanes;

  template <int kTo>
  static void zero() {
    std::memset(registers_[kTo], 0, sizeof(registers_[kTo]));
  }
  template <int kTo>
  static void load(const void* rows, ptrdiff_t stride_bytes) {
    const auto* from = static_cast<const char*>(rows);
    for (size_t row = 0; row < kMatrixRows; ++row, from += stride_bytes) {
      std::memcpy(registers_[kTo][row], from, matrix_row_bytes(kTo, kColumns));
    }
  }
  template <int kFrom>
  static void store(void* rows, ptrdiff_t stride_bytes) {
    auto* to = static_cast<char*>(rows);
    for (size_t row = 0; row < kMatrixRows; ++row, to += stride_bytes) {
      std::memcpy(to, registers_[kFrom][row], matrix_row_bytes(kFrom, kColumns));
    }
  }
  template <int kSum, int kRightOperand>
  static void multiply_add() {
    for (size_t row = 0; row < kMatrixRows; ++row) {
      for (size_t column = 0; column < kColumns; ++column) {
        float sum = as_float(registers_[kSum][row][column]);
        for (size_t pair = 0; pair < kMatrixPairs; ++pair) {
          const uint32_t left = registers_[kLeft][row][pair];
          const uint32_t right = registers_[kRightOperand][pair][column];
          sum += as_float(left << 16) * as_float(right << 16);
          sum += as_float(left & 0xFFFF0000u) * as_float(right & 0xFFFF0000u);
        }
        std::memcpy(&registers_[kSum][row][column], &sum, sizeof(sum));
      }
    }
  }

 private:
  static float as_float(uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, sizeof(number));
    return number;
  }

  static inline thread_local uint32_t registers_[kMatrixRegisters][kMatrixRows][kMatrixPairs];
  static_assert(kColumns <= kMatrixPairs, "");
};

}  // namespace moh::cpu

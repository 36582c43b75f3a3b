#include "cuda/emu/matrices.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cuda/emu/block.h"
#include "cuda/emu/control.h"
#include "cuda/emu/names.h"
#include "cuda/emu/sanitizers.h"

namespace moh::cuda::emu {
namespace {

constexpr int kRows = 8;  // of a matrix that is loaded
constexpr size_t kRowBytes = 16;

// Rows of one matrix are read at once, if their banks differ.
uint64_t conflicts(const Warp& warp, int first_lane) {
  uint64_t result = 0;
  for (int i = 0; i < kRows; ++i) {
    const auto mine = reinterpret_cast<uintptr_t>(warp.lanes[first_lane + i]->address);
    for (int j = 0; j < i; ++j) {
      const auto other = reinterpret_cast<uintptr_t>(warp.lanes[first_lane + j]->address);
      if (mine != other && mine / kRowBytes % 8 == other / kRowBytes % 8) {
        ++result;
        break;
      }
    }
  }
  return result;
}

uint32_t element(const Warp& warp, int first_lane, int row, int column) {
  uint16_t bits;
  const auto* words = static_cast<const uint16_t*>(warp.lanes[first_lane + row]->address);
  std::memcpy(&bits, words + column, sizeof bits);
  return bits;
}

template <int kCount, bool kTransposed>
void distribute(const Warp& warp, uint32_t) {
  ++counts().matrix_loads;
  for (int matrix = 0; matrix < kCount; ++matrix) {
    const int first = matrix * kRows;
    counts().matrix_load_conflicts += conflicts(warp, first);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t low =
          kTransposed ? element(warp, first, column, row) : element(warp, first, row, column);
      const uint32_t high = kTransposed ? element(warp, first, column + 1, row)
                                        : element(warp, first, row, column + 1);
      warp.lanes[lane]->got[static_cast<size_t>(matrix)] = low | high << 16;
    }
  }
}

float value_of(Operand operand, uint32_t word, int half) {
  const auto bits = static_cast<uint16_t>(word >> (16 * half));
  switch (operand) {
    case Operand::kHalf:
      return __half2float(__half(__half_raw{bits}));
    case Operand::kBFloat16:
      return __bfloat162float(__nv_bfloat16(__nv_bfloat16_raw{bits}));
    case Operand::kTf32:
      return same_bits<float>(word & ~0x1fffu);  // the rest does not reach the unit
  }
  return 0;
}

// The units round toward 0.
float rounded(double sum) {
  const auto nearest = static_cast<float>(sum);
  return std::isfinite(sum) && std::fabs(nearest) > std::fabs(sum) ? std::nextafterf(nearest, 0.0f)
                                                                   : nearest;
}

// Operands of one product, gathered from the lanes.
struct Matrices {
  float a[16][16], b[16][8];  // [row, k], [k, column]
};

// Columns 2c and 2c + 1 of a word's pair for 16-bit numbers, one for 32-bit ones.
template <Operand kOperand>
void gather(const Warp& warp, Matrices& m) {
  constexpr int kPack = kOperand == Operand::kTf32 ? 1 : 2;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& given = warp.lanes[lane]->given;
    const int row = lane / 4, k = lane % 4 * kPack;
    for (int half = 0; half < kPack; ++half) {
      for (int i = 0; i < 4; ++i) {
        m.a[row + i % 2 * 8][k + half + i / 2 * 4 * kPack] =
            value_of(kOperand, given[static_cast<size_t>(4 + i)], half);
      }
      for (int i = 0; i < 2; ++i) {
        m.b[k + half + i * 4 * kPack][row] =
            value_of(kOperand, given[static_cast<size_t>(8 + i)], half);
      }
    }
  }
}

template <Operand kOperand>
void product(const Warp& warp, uint32_t) {
  constexpr int kDepth = kOperand == Operand::kTf32 ? 8 : 16;
  ++counts().matrix_products;
  Matrices m;
  gather<kOperand>(warp, m);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = same_bits<float>(warp.lanes[lane]->given[static_cast<size_t>(i)]);
      for (int k = 0; k < kDepth; ++k) {
        sum += static_cast<double>(m.a[row][k]) * static_cast<double>(m.b[k][column]);
      }
      warp.lanes[lane]->got[static_cast<size_t>(i)] = same_bits<uint32_t>(rounded(sum));
    }
  }
}

}  // namespace

void load_matrices(const char* name, uint32_t* out, int count, const void* row, Place place) {
  Block& block = current_block();
  Thread& me = block.thread();
  me.address = row;
  if (me.lane() < kRows * count) {
    if (!block.holds(row, kRowBytes) || reinterpret_cast<uintptr_t>(row) % kRowBytes != 0) {
      block.fail(std::string(name) + " at " + text(place) +
                 ": the row's address is not a multiple of 16 within shared memory");
    }
    reads_16(row, __builtin_return_address(0));
  }
  const bool transposed = std::strstr(name, "transposed") != nullptr;
  const auto evaluate = count == 4 ? (transposed ? &distribute<4, true> : &distribute<4, false>)
                                   : (transposed ? &distribute<2, true> : &distribute<2, false>);
  block.meet(name, ~0u, place, evaluate);
  std::copy_n(me.got.begin(), count, out);
}

void multiply(Operand operand, float* sum, const uint32_t* a, const uint32_t* b, Place place) {
  Block& block = current_block();
  Thread& me = block.thread();
  std::memcpy(me.given.data(), sum, 4 * sizeof(float));
  std::copy_n(a, 4, me.given.begin() + 4);
  std::copy_n(b, 2, me.given.begin() + 8);
  const bool is_tf32 = operand == Operand::kTf32;
  const auto evaluate = is_tf32                     ? &product<Operand::kTf32>
                        : operand == Operand::kHalf ? &product<Operand::kHalf>
                                                    : &product<Operand::kBFloat16>;
  block.meet(is_tf32 ? "mma_m16n8k8_tf32" : "mma_m16n8k16", ~0u, place, evaluate);
  std::memcpy(sum, me.got.data(), 4 * sizeof(float));
}

uint32_t round_to_tf32(float value) {
  const auto bits = same_bits<uint32_t>(value);
  if (std::isnan(value)) {
    return 0x7fffffffu;
  }
  return std::isinf(value) ? bits : (bits + 0x1000u) & ~0x1fffu;
}

float exp2_approx(float x) {
  const float power = std::exp2(x);
  return power < std::numeric_limits<float>::min() ? 0.0f : power;
}

}  // namespace moh::cuda::emu

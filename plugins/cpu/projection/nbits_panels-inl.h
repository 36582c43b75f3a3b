// Products of rows in 8 bits with packed weights in 4: where the time of a decoder's step goes.
//
// A weight [depth, columns] is cut into panels, one for each vector of columns, and a panel into
// blocks of kBlock rows: four vectors of bytes, then a vector with the scale of each column. A
// column's four bytes of vector v have its rows 4 * v to 4 * v + 3 in their lower halves, and the
// 16th behind each of these in their upper halves. Blocks that are read or skipped together, a
// group, follow each other, and so do the panels of a group: memory is read in long stretches.
#if defined(MOH_CPU_PROJECTION_NBITS_PANELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_PROJECTION_NBITS_PANELS_INL_H_
#undef MOH_CPU_PROJECTION_NBITS_PANELS_INL_H_
#else
#define MOH_CPU_PROJECTION_NBITS_PANELS_INL_H_
#endif

#include <cstring>

#include "cpu/scratch.h"
#include "cpu/simd/vector-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

using DI32 = hn::RebindToSigned<DF>;
using DU8 = hn::Repartition<uint8_t, DF>;
using DI8 = hn::Repartition<int8_t, DF>;

constexpr size_t kBlock = 32, kHalfBlock = kBlock / 2, kQuad = 4;
constexpr size_t kVectorBytes = kLanes * sizeof(float);
constexpr size_t kDigitVectors = kHalfBlock / kQuad;
constexpr size_t kPanelBlockBytes = (kDigitVectors + 1) * kVectorBytes;
// What a stored digit of 0 to 15 stands for is that much less.
constexpr int32_t kZero = 8;

constexpr size_t blocks_of(size_t depth) { return (depth + kBlock - 1) / kBlock; }

// Where the parts of a packed weight are.
struct PackedDigits {
  size_t panels, blocks, blocks_per_group;

  // The first of `size_of(group)` blocks of a panel.
  size_t offset(size_t group, size_t panel) const {
    return (group * blocks_per_group * panels + panel * size_of(group)) * kPanelBlockBytes;
  }
  size_t groups() const { return (blocks + blocks_per_group - 1) / blocks_per_group; }
  size_t size_of(size_t group) const {
    return HWY_MIN(blocks_per_group, blocks - group * blocks_per_group);
  }
};

// Blocks [first, end) of a panel: digits [columns, blocks, kHalfBlock], two in a byte, and scales
// [columns, blocks]. Columns behind the last one have scales of 0.
inline void pack_blocks(const uint8_t* weight, const float* scales, size_t blocks, size_t columns,
                        size_t panel, size_t first, size_t end, uint8_t* packed) {
  const size_t begin = panel * kLanes, count = HWY_MIN(kLanes, columns - begin);
  for (size_t block = first; block < end; ++block, packed += kPanelBlockBytes) {
    for (size_t column = 0; column < kLanes; ++column) {
      const size_t from = (begin + column) * blocks + block;
      const auto digit = [&](size_t k) {
        return column < count ? weight[from * kHalfBlock + k / 2] >> (k % 2 * 4) & 15 : kZero;
      };
      for (size_t k = 0; k < kHalfBlock; ++k) {
        packed[k / kQuad * kVectorBytes + column * kQuad + k % kQuad] =
            static_cast<uint8_t>(digit(k) | digit(k + kHalfBlock) << 4);
      }
      const float scale = column < count ? scales[from] : 0.0f;
      std::memcpy(packed + kDigitVectors * kVectorBytes + column * sizeof(float), &scale,
                  sizeof(float));
    }
  }
}

// Rows in 8 bits: a block's numbers are `scale` times integers from -127 to 127.
struct RoundedRows {
  const int8_t* numbers;   // [rows, blocks * kBlock]
  const float* scales;     // [rows, blocks]
  const int32_t* offsets;  // [rows, blocks]: -kZero times the sum of the block's integers
  size_t blocks;
};

// Rounds a row of `size` numbers; behind the last one are zeros. A number that is not finite makes
// its block's scale NaN.
inline void round_row(const float* row, size_t size, int8_t* numbers, float* scales,
                      int32_t* offsets) {
  const DF df;
  const hn::Rebind<int8_t, DF> di8;
  for (size_t block = 0; block * kBlock < size; ++block) {
    const size_t begin = block * kBlock;
    VF parts[kBlock / kLanes];
    VF largest = hn::Zero(df), not_finite = hn::Zero(df);
    for (size_t i = 0; i < kBlock / kLanes; ++i) {
      const size_t at = begin + i * kLanes;
      parts[i] = at < size ? load_part(row, at, size) : hn::Zero(df);
      largest = hn::Max(largest, hn::Abs(parts[i]));
      not_finite = hn::MulAdd(parts[i], hn::Zero(df), not_finite);
    }
    const float most = hn::ReduceMax(df, largest);
    const VF inverse = hn::Set(df, most > 0 ? 127.0f / most : 0.0f);
    auto sum = hn::Zero(DI32());
    for (size_t i = 0; i < kBlock / kLanes; ++i) {
      const auto whole = hn::NearestInt(hn::Mul(parts[i], inverse));
      sum = hn::Add(sum, whole);
      hn::StoreU(hn::DemoteTo(di8, whole), di8, numbers + begin + i * kLanes);
    }
    scales[block] = most / 127.0f + hn::ReduceSum(df, not_finite);
    offsets[block] = -kZero * hn::ReduceSum(DI32(), sum);
  }
}

// Adds to each lane the products of its four digits with its four numbers.
HWY_INLINE hn::Vec<DI32> add_quads(hn::Vec<DI32> sum, hn::Vec<DU8> digits, hn::Vec<DI8> numbers) {
#if HWY_TARGET == HWY_SSE2 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  // Two products fit into 16 bits: 2 * 15 * 127. Highway does not know that digits are small.
  const hn::Repartition<int16_t, DF> di16;
  const auto pairs = hn::SatWidenMulPairwiseAdd(di16, digits, numbers);
  return hn::Add(sum, hn::WidenMulPairwiseAdd(DI32(), pairs, hn::Set(di16, int16_t{1})));
#else
  return hn::SumOfMulQuadAccumulate(DI32(), digits, numbers, sum);
#endif
}

// Four numbers of a row in every lane.
HWY_INLINE hn::Vec<DI8> broadcast_quad(const int8_t* numbers) {
  int32_t quad;
  std::memcpy(&quad, numbers, sizeof(quad));
  return hn::BitCast(DI8(), hn::Set(DI32(), quad));
}

// Rows of a tile: two sums of each are in registers.
constexpr size_t kNBitsTileRows = kManyRegisters ? 8 : 4;

// How far ahead of what is multiplied memory is asked for: the processor itself stops at the end
// of each page.
constexpr size_t kAhead = 2048;

// sums[r] = the product of row rows[r] with blocks [begin, end) of a panel, the first of which is
// at `from`.
template <size_t kRows>
HWY_NOINLINE void multiply_digits(const uint8_t* HWY_RESTRICT from, const RoundedRows& x,
                                  const int32_t* rows, size_t begin, size_t end, float* sums) {
  const DF df;
  const DU8 du8;
  const int8_t* numbers[kRows];
  const float* scales[kRows];
  const int32_t* offsets[kRows];
  VF tile[kRows];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    const size_t at = static_cast<size_t>(rows[r]) * x.blocks;
    numbers[r] = x.numbers + at * kBlock;
    scales[r] = x.scales + at;
    offsets[r] = x.offsets + at;
    tile[r] = hn::Zero(df);
  }
  for (size_t block = begin; block < end; ++block, from += kPanelBlockBytes) {
    for (size_t at = 0; at < kPanelBlockBytes; at += kCacheLine) {
      hwy::Prefetch(from + kAhead + at);
    }
    hn::Vec<DI32> whole[kRows];
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      whole[r] = hn::Set(DI32(), offsets[r][block]);
    }
#pragma GCC unroll 4
    for (size_t v = 0; v < kDigitVectors; ++v) {
      const auto both = hn::Load(du8, from + v * kVectorBytes);
      const auto low = hn::And(both, hn::Set(du8, uint8_t{15})), high = hn::ShiftRight<4>(both);
#pragma GCC unroll 8
      for (size_t r = 0; r < kRows; ++r) {
        const int8_t* const quads = numbers[r] + block * kBlock + v * kQuad;
        whole[r] = add_quads(whole[r], low, broadcast_quad(quads));
        whole[r] = add_quads(whole[r], high, broadcast_quad(quads + kHalfBlock));
      }
    }
    const VF scale = hn::BitCast(df, hn::Load(du8, from + kDigitVectors * kVectorBytes));
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const VF both = hn::Mul(scale, hn::Set(df, scales[r][block]));
      tile[r] = hn::MulAdd(hn::ConvertTo(df, whole[r]), both, tile[r]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    hn::Store(tile[r], df, sums + r * kLanes);
  }
}

// The same for `count` <= kRows rows.
template <size_t kRows>
HWY_INLINE void multiply_digits_of(const uint8_t* from, const RoundedRows& x, const int32_t* rows,
                                   size_t count, size_t begin, size_t end, float* sums) {
  if constexpr (kRows > 0) {
    if (count == kRows) {
      multiply_digits<kRows>(from, x, rows, begin, end, sums);
    } else {
      multiply_digits_of<kRows - 1>(from, x, rows, count, begin, end, sums);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

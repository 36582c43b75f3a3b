// Products of rows in 8 bits with weights in few: where the time of a decoder's step goes.
//
// A weight is read as it is stored, which is column by column: packed in advance, a session would
// hold it twice. Products want columns in lanes. So a piece of a panel (as many columns as a vector
// has lanes, some blocks of their rows) is transposed into memory that stays in the nearest cache,
// and multiplied with every row from there.
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

// Four digits of 8 bits, or eight of 4, are a number of 32 bits: a block of a column has as many of
// these as a digit has bits.
constexpr size_t kBlock = 32, kQuad = 4;

// What a stored digit stands for is that much less.
constexpr int32_t zero_of(int32_t bits) { return 1 << (bits - 1); }

constexpr size_t blocks_of(size_t depth) { return (depth + kBlock - 1) / kBlock; }

// Puts `count` numbers of 32 bits of each column, which begin `stride` numbers apart, side by side:
// number i to to[i * kLanes + column]. Columns behind the last one are 0. Up to a multiple of
// kLanes of numbers are written, and may be read: `readable` numbers from `from` on. Asks for the
// memory `ahead` numbers behind.
inline void side_by_side(const float* from, size_t stride, size_t columns, size_t count,
                         size_t readable, size_t ahead, float* to) {
  const DF df;
  for (size_t begin = 0; begin < count; begin += kLanes) {
    VF rows[kLanes];
    if (columns == kLanes && (kLanes - 1) * stride + begin + kLanes <= readable) {
#pragma GCC unroll 16
      for (size_t column = 0; column < kLanes; ++column) {
        const float* const at = from + column * stride + begin;
        hwy::Prefetch(at + ahead);
        rows[column] = hn::LoadU(df, at);
      }
    } else {
      const size_t some = HWY_MIN(kLanes, count - begin);
      for (size_t column = 0; column < kLanes; ++column) {
        rows[column] =
            column < columns ? hn::LoadN(df, from + column * stride + begin, some) : hn::Zero(df);
      }
    }
    transpose(rows);
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) {
      hn::Store(rows[i], df, to + (begin + i) * kLanes);
    }
  }
}

// Some blocks of a panel, columns in lanes.
struct Piece {
  static constexpr size_t kMostBlocks = 32;

  HWY_ALIGN float digits[kMostBlocks * 8 * kLanes];  // [blocks, bits, kLanes], of 32 bits each
  HWY_ALIGN float scales[kMostBlocks * kLanes];      // [blocks, kLanes]

  // Reads `count` blocks of a panel, and asks for those `ahead` blocks behind.
  void read(const NBitsWeight& weight, size_t panel, size_t block, size_t count, size_t ahead) {
    const size_t columns = static_cast<size_t>(weight.columns) - panel * kLanes;
    const size_t blocks = blocks_of(static_cast<size_t>(weight.depth));
    const auto bits = static_cast<size_t>(weight.bits);
    const size_t first = panel * kLanes * blocks + block;
    const size_t left = static_cast<size_t>(weight.columns) * blocks - first;
    side_by_side(reinterpret_cast<const float*>(weight.digits) + first * bits, blocks * bits,
                 HWY_MIN(columns, kLanes), count * bits, left * bits, ahead * bits, digits);
    side_by_side(weight.scales + first, blocks, HWY_MIN(columns, kLanes), count, left, ahead,
                 scales);
  }
};

// Rows in 8 bits: a block's numbers are `scale` times integers from -127 to 127.
struct RoundedRows {
  const int8_t* numbers;   // [rows, blocks * kBlock]
  const float* scales;     // [rows, blocks]
  const int32_t* offsets;  // [rows, blocks]: what the zero of the digits makes of the block
  size_t blocks;
};

// Of eight numbers the even ones first: two digits of 4 bits in a byte are multiplied with them one
// after the other.
HWY_INLINE void even_ones_first(int8_t* numbers) {
  const hn::Full128<int8_t> d;
  const hn::Full128<int32_t> quads;
  for (size_t i = 0; i < kBlock; i += hn::Lanes(d)) {
    const auto all = hn::LoadU(d, numbers + i);
    const auto even = hn::BitCast(quads, hn::ConcatEven(d, all, all));
    const auto odd = hn::BitCast(quads, hn::ConcatOdd(d, all, all));
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(quads, even, odd)), d, numbers + i);
  }
}

// Rounds a row of `size` numbers for digits of so many bits; behind the last one are zeros. A
// number that is not finite makes its block's scale NaN.
inline void round_row(const float* row, size_t size, int32_t bits, int8_t* numbers, float* scales,
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
      // What is not finite is 0 here, or its sum would overflow: the block's scale says it. So is a
      // number that a maximum lost beside a NaN.
      const VF scaled = hn::Mul(parts[i], inverse);
      const auto fits = hn::Lt(hn::Abs(scaled), hn::Set(df, 128.0f));
      const auto whole = hn::NearestInt(hn::IfThenElseZero(fits, scaled));
      sum = hn::Add(sum, whole);
      hn::StoreU(hn::DemoteTo(di8, whole), di8, numbers + begin + i * kLanes);
    }
    if (bits == 4) {
      even_ones_first(numbers + begin);
    }
    scales[block] = most / 127.0f + hn::ReduceSum(df, not_finite);
    offsets[block] = -zero_of(bits) * hn::ReduceSum(DI32(), sum);
  }
}

// Adds to each lane the products of its four digits with its four numbers.
template <int32_t kBits>
HWY_INLINE hn::Vec<DI32> add_quads(hn::Vec<DI32> sum, hn::Vec<DU8> digits, hn::Vec<DI8> numbers) {
#if HWY_TARGET == HWY_SSE2 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  if constexpr (kBits == 4) {
    // Two products fit into 16 bits: 2 * 15 * 127. Highway does not know that digits are small.
    const hn::Repartition<int16_t, DF> di16;
    const auto pairs = hn::SatWidenMulPairwiseAdd(di16, digits, numbers);
    return hn::Add(sum, hn::WidenMulPairwiseAdd(DI32(), pairs, hn::Set(di16, int16_t{1})));
  }
#endif
  return hn::SumOfMulQuadAccumulate(DI32(), digits, numbers, sum);
}

// Four numbers of a row in every lane.
HWY_INLINE hn::Vec<DI8> broadcast_quad(const int8_t* numbers) {
  int32_t quad;
  std::memcpy(&quad, numbers, sizeof(quad));
  return hn::BitCast(DI8(), hn::Set(DI32(), quad));
}

// Rows of a tile: two sums of each are in registers.
constexpr size_t kNBitsTileRows = kManyRegisters ? 8 : 4;

// Adds to sums[r] the product of row rows[r] with a piece, whose blocks are [begin, end) of a
// column: block by block, so that it makes no difference where a piece ends.
template <int32_t kBits, size_t kRows>
HWY_NOINLINE void multiply_piece(const Piece& piece, const RoundedRows& x, const int32_t* rows,
                                 size_t begin, size_t end, float* sums) {
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
    tile[r] = hn::Load(df, sums + r * kLanes);
  }
  const float* HWY_RESTRICT digits = piece.digits;
  for (size_t block = begin; block < end; ++block) {
    hn::Vec<DI32> whole[kRows];
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      whole[r] = hn::Set(DI32(), offsets[r][block]);
    }
#pragma GCC unroll 8
    for (size_t v = 0; v < kBits; ++v, digits += kLanes) {
      const auto all = hn::BitCast(du8, hn::Load(df, digits));
      if constexpr (kBits == 4) {
        const auto low = hn::And(all, hn::Set(du8, uint8_t{15})), high = hn::ShiftRight<4>(all);
#pragma GCC unroll 8
        for (size_t r = 0; r < kRows; ++r) {
          const int8_t* const eight = numbers[r] + block * kBlock + v * 2 * kQuad;
          whole[r] = add_quads<kBits>(whole[r], low, broadcast_quad(eight));
          whole[r] = add_quads<kBits>(whole[r], high, broadcast_quad(eight + kQuad));
        }
      } else {
#pragma GCC unroll 8
        for (size_t r = 0; r < kRows; ++r) {
          const int8_t* const quad = numbers[r] + block * kBlock + v * kQuad;
          whole[r] = add_quads<kBits>(whole[r], all, broadcast_quad(quad));
        }
      }
    }
    const VF scale = hn::Load(df, piece.scales + (block - begin) * kLanes);
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
template <int32_t kBits, size_t kRows>
HWY_INLINE void multiply_piece_of(const Piece& piece, const RoundedRows& x, const int32_t* rows,
                                  size_t count, size_t begin, size_t end, float* sums) {
  if constexpr (kRows > 0) {
    if (count == kRows) {
      multiply_piece<kBits, kRows>(piece, x, rows, begin, end, sums);
    } else {
      multiply_piece_of<kBits, kRows - 1>(piece, x, rows, count, begin, end, sums);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

// The two products of a tile in matrix registers: Sᵀ = K Qᵀ and Oᵀ = Vᵀ Pᵀ, as in products-inl.h,
// 16 keys or features times 32 elements of the summed axis at once. Scores, weights and outputs
// have the layout that the other products give them; keys and values are copied, in bfloat16.
#if defined(MOH_CPU_ATTENTION_MATRICES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_ATTENTION_MATRICES_INL_H_
#undef MOH_CPU_ATTENTION_MATRICES_INL_H_
#else
#define MOH_CPU_ATTENTION_MATRICES_INL_H_
#endif

#include <type_traits>

#include "cpu/attention/products-inl.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"
#include "cpu/simd/matrix_registers.h"
#include "cpu/simd/vector-inl.h"

// AMX goes with vectors of its width; what emulates it is compiled once, for every machine.
#undef MOH_AMX_PRODUCTS
#define MOH_AMX_PRODUCTS MOH_BFLOAT16_PRODUCTS
#undef MOH_EMULATED_AMX
#define MOH_EMULATED_AMX (HWY_TARGET == HWY_STATIC_TARGET)

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

template <class MatrixRegisters>
struct MatrixProducts {
  using Registers = MatrixRegisters;
  static_assert(Registers::kColumns == kLanes, "");
  using Operand = uint32_t;  // two bfloat16, the first in the low half
  // Products are so fast that what an output costs with each block counts for more than a cache.
  static constexpr size_t kMostKeys = 256;
  static constexpr size_t kDepth = 2;
  static constexpr bool kInMatrices = true;
  static HWY_INLINE VF pack(VF first, VF second) {
#if MOH_BFLOAT16_PRODUCTS
    return BFloat16Products::pack(first, second);
#else
    const hn::RebindToUnsigned<DF> du;
    const hn::Rebind<hwy::bfloat16_t, DF> db;
    const auto rounded = [&](VF x) HWY_ATTR {
      return hn::BitCast(du, hn::PromoteTo(DF(), hn::DemoteTo(db, x)));
    };
    return hn::BitCast(DF(), hn::Or(hn::ShiftRight<16>(rounded(first)), rounded(second)));
#endif
  }
};

// Operands of `size` elements in whole registers, and of a row of values: a block may be entered at
// any even key, and what a register takes behind its end are zeros.
constexpr size_t matrix_operands(size_t size) { return round_up((size + 1) / 2, kMatrixPairs); }
constexpr size_t value_row_operands(size_t keys) { return matrix_operands(keys) + kMatrixPairs; }

// sums[row][vector] (+)= left[row][pair] . right[pair][vector] for 16 rows and kCount of
// kWidth vectors, beginning with that which `right` and `sums` point to; `pairs` is a multiple of
// what a register takes.
template <class Registers, size_t kWidth, size_t kCount>
HWY_INLINE void multiply(OperandRows<uint32_t> left, const float* right, size_t pairs, bool add,
                         float* sums) {
  constexpr auto kRowBytes = static_cast<ptrdiff_t>(kWidth * kLanes * sizeof(float));
  unrolled<0, kCount>([&](auto v) HWY_ATTR {
    constexpr int kSum = kSums + static_cast<int>(v);
    if (add) {
      Registers::template load<kSum>(sums + v * kLanes, kRowBytes);
    } else {
      Registers::template zero<kSum>();
    }
  });
  for (size_t pair = 0; pair < pairs; pair += kMatrixPairs) {
    Registers::template load<kLeft>(left.data + pair,
                                    left.stride * static_cast<ptrdiff_t>(sizeof(uint32_t)));
    unrolled<0, kCount>([&](auto v) HWY_ATTR {
      constexpr int kVector = static_cast<int>(v);
      Registers::template load<kRight + kVector>(right + (pair * kWidth + v) * kLanes, kRowBytes);
      Registers::template multiply_add<kSums + kVector, kRight + kVector>();
    });
  }
  unrolled<0, kCount>([&](auto v) HWY_ATTR {
    Registers::template store<kSums + static_cast<int>(v)>(sums + v * kLanes, kRowBytes);
  });
}

// `count` rows as operands whose depth is the feature, with zeros behind the last one. Registers
// read up to 15 rows more; their results are not used.
template <typename T>
HWY_INLINE OperandRows<uint32_t> matrix_keys(const T* rows, ptrdiff_t stride, size_t count,
                                             size_t size, uint32_t* copy) {
  const size_t length = matrix_operands(size);
  for (size_t row = 0; row < count; ++row) {
    const T* from = rows + static_cast<ptrdiff_t>(row) * stride;
    auto* to = reinterpret_cast<hwy::bfloat16_t*>(copy + row * length);
    prefetch_row(from + kRowsAhead * stride, size);
    for (size_t d = 0; d < 2 * length; d += kLanes) {
      store_floats(d < size ? load_part(from, d, size) : hn::Zero(DF()), to + d);
    }
  }
  return {copy, static_cast<ptrdiff_t>(length)};
}

// `count` rows transposed: operand [feature][key / 2], with zeros behind the last key.
template <class Products, typename T>
HWY_INLINE OperandRows<uint32_t> matrix_values(const T* rows, ptrdiff_t stride, size_t count,
                                               size_t size, size_t length, uint32_t* copy) {
  const auto part = [&](size_t row, size_t d) HWY_ATTR {
    return row < count ? load_part(rows + static_cast<ptrdiff_t>(row) * stride, d, size)
                       : hn::Zero(DF());
  };
  for (size_t pair = 0; pair < length; pair += kLanes) {
    for (size_t row = 2 * (pair + kLanes); row < HWY_MIN(count, 2 * (pair + 2 * kLanes)); ++row) {
      prefetch_row(rows + static_cast<ptrdiff_t>(row) * stride, size);
    }
    for (size_t d = 0; d < size; d += kLanes) {
      VF block[kLanes];  // [pair of keys], features in lanes
#pragma GCC unroll 16
      for (size_t i = 0; i < kLanes; ++i) {
        block[i] = Products::pack(part(2 * (pair + i), d), part(2 * (pair + i) + 1, d));
      }
      transpose(block);
#pragma GCC unroll 16
      for (size_t i = 0; i < kLanes; ++i) {
        hn::StoreU(block[i], DF(), reinterpret_cast<float*>(copy + (d + i) * length + pair));
      }
    }
  }
  return {copy, static_cast<ptrdiff_t>(length)};
}

// largest = max over the products of `count` keys, which are moved to `scores` where they are
// elsewhere; with kAdd they are added to what is there.
template <size_t kWidth, size_t kCount, bool kMove, bool kAdd>
HWY_INLINE void take_scores(const float* products, size_t count, float* scores, VF* largest) {
  const DF df;
  VF most[kCount];  // in registers: `largest` may be what a score is stored to, for all GCC knows
#pragma GCC unroll 3
  for (size_t v = 0; v < kCount; ++v) {
    most[v] = largest[v];
  }
  for (size_t row = 0; row < count; ++row) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kCount; ++v) {
      const size_t at = (row * kWidth + v) * kLanes;
      VF score = hn::Load(df, products + at);
      if constexpr (kAdd) {
        score = add_bias(score, hn::Load(df, scores + at));
      }
      most[v] = hn::Max(most[v], score);
      if constexpr (kMove) {
        hn::Store(score, df, scores + at);
      }
    }
  }
#pragma GCC unroll 3
  for (size_t v = 0; v < kCount; ++v) {
    largest[v] = most[v];
  }
}

// score_range of products-inl.h. Where scores are added to what is there, or are not those of 16
// keys, they go by way of `strip`, which has room for 16.
template <class Registers, size_t kWidth, size_t kCount, bool kAdd>
HWY_INLINE void score_in_matrices(OperandRows<uint32_t> keys, const float* queries, size_t pairs,
                                  size_t begin, size_t end, float* scores, float* strip,
                                  VF* largest) {
  for (size_t key = begin; key < end; key += kMatrixRows) {
    const size_t count = HWY_MIN(kMatrixRows, end - key);
    float* const to = scores + key * kWidth * kLanes;
    const bool in_place = !kAdd && count == kMatrixRows;
    multiply<Registers, kWidth, kCount>(keys.from(key), queries, pairs, false,
                                        in_place ? to : strip);
    if (in_place) {
      take_scores<kWidth, kCount, false, false>(to, count, to, largest);
    } else {
      take_scores<kWidth, kCount, true, kAdd>(strip, count, to, largest);
    }
  }
}

// outputs[feature][vector] = outputs * decay + values * weights for all features. Weights of the
// keys that a vector does not compute, in pairs, are made zeros.
template <class Registers, size_t kWidth>
HWY_INLINE void weigh_in_matrices(OperandRows<uint32_t> values, float* weights,
                                  const Spans<kWidth>& spans, const VF (&decay)[kWidth],
                                  bool first_block, size_t features, float* outputs) {
  const DF df;
  // Registers may begin with any pair, and take what they need behind the last.
  const size_t begin = spans.begins[0] / 2;
  const size_t pairs = round_up((spans.ends[kWidth - 1] + 1) / 2 - begin, kMatrixPairs);
  values.data += begin;
  weights += begin * kWidth * kLanes;
  for (size_t v = 0; v < kWidth; ++v) {
    for (size_t pair = begin; pair < begin + pairs; ++pair) {
      if (2 * pair < spans.begins[v] || 2 * pair >= spans.ends[v]) {
        hn::Store(hn::Zero(df), df, weights + ((pair - begin) * kWidth + v) * kLanes);
      }
    }
  }
  if (!first_block) {
    for (size_t d = 0; d < features; ++d) {
#pragma GCC unroll 3
      for (size_t v = 0; v < kWidth; ++v) {
        float* const output = outputs + (d * kWidth + v) * kLanes;
        hn::Store(hn::Mul(hn::Load(df, output), decay[v]), df, output);
      }
    }
  }
  for (size_t d = 0; d < features; d += kMatrixRows) {
    const auto row = static_cast<ptrdiff_t>(d);
    multiply<Registers, kWidth, kWidth>({values.data + row * values.stride, values.stride}, weights,
                                        pairs, !first_block, outputs + d * kWidth * kLanes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

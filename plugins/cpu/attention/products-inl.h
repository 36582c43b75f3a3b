// The two matrix products of a tile, and the softmax between them, with queries in lanes: Sᵀ = K Qᵀ
// and Oᵀ = Vᵀ Pᵀ.
//
// A tile is up to kMaxVectors vectors of rows. Keys and values are read where they lie, one scalar
// at a time, and broadcast: nothing of them is transposed or packed, a head of any size fits
// without padding, and the softmax needs no horizontal operation.
#if defined(MOH_CPU_ATTENTION_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_ATTENTION_PRODUCTS_INL_H_
#undef MOH_CPU_ATTENTION_PRODUCTS_INL_H_
#else
#define MOH_CPU_ATTENTION_PRODUCTS_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// How operands are multiplied. An `Operand` holds kDepth consecutive elements of the summed axis;
// pack() makes vectors of them. A block of keys has at most kMostKeys.
struct Float32Products {
  using Operand = float;
  // The scores of a tile with so many keys leave room for their values in the first cache.
  static constexpr size_t kMostKeys = 128;
  static constexpr size_t kDepth = 1;
  struct Registers {};
  static constexpr bool kInMatrices = false;
  static HWY_INLINE VF pack(VF first, VF /*none*/) { return first; }
  static HWY_INLINE VF mul_add(VF x, Operand broadcast, VF sum) {
    return hn::MulAdd(x, hn::Set(DF(), broadcast), sum);
  }
};

// Only there is a product of bfloat16 pairs, and are vectors as wide as pack() takes them to be.
#undef MOH_BFLOAT16_PRODUCTS
#define MOH_BFLOAT16_PRODUCTS (HWY_NATIVE_DOT_BF16 && HWY_TARGET <= HWY_AVX3)

#if MOH_BFLOAT16_PRODUCTS
struct BFloat16Products {
  using Operand = uint32_t;  // two bfloat16, the first in the low half
  static constexpr size_t kMostKeys = Float32Products::kMostKeys;
  static constexpr size_t kDepth = 2;
  struct Registers {};
  static constexpr bool kInMatrices = false;
  static HWY_INLINE VF pack(VF first, VF second) {
    const hn::Repartition<hwy::bfloat16_t, DF> db;
    const hn::RebindToUnsigned<decltype(db)> du16;
    HWY_ALIGN static constexpr uint16_t kAlternate[2 * kLanes] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto both = hn::BitCast(du16, hn::OrderedDemote2To(db, first, second));
    return hn::BitCast(DF(), hn::TableLookupLanes(both, hn::SetTableIndices(du16, kAlternate)));
  }
  static HWY_INLINE VF mul_add(VF x, Operand broadcast, VF sum) {
    const hn::Repartition<hwy::bfloat16_t, DF> db;
    const hn::RebindToUnsigned<DF> du;
    VF unused = hn::Zero(DF());
    return hn::ReorderWidenMulAccumulate(DF(), hn::BitCast(db, x),
                                         hn::BitCast(db, hn::Set(du, broadcast)), sum, unused);
  }
};
#endif

// Calls body(v) with the constants from kFrom to kTo.
template <size_t kFrom, size_t kTo, class Body>
HWY_INLINE void unrolled(const Body& body) {
  if constexpr (kFrom < kTo) {
    body(std::integral_constant<size_t, kFrom>());
    unrolled<kFrom + 1, kTo>(body);
  }
}

// Rows of operands in memory: row i starts at data + i * stride.
template <typename Operand>
struct OperandRows {
  const Operand* data;
  ptrdiff_t stride;
  HWY_INLINE OperandRows from(size_t row) const {
    return {data + static_cast<ptrdiff_t>(row) * stride, stride};
  }
};

// scores[key][vector] (+)= keys . queries for kKeys keys and kCount of the kWidth vectors of a
// tile, beginning with that which `queries`, `scores` and `largest` point to; largest = max over
// keys. With kAdd, the scores in memory (a bias) are added. Not inlined: the accumulators need the
// registers to themselves.
template <class Products, size_t kKeys, size_t kWidth, size_t kCount, bool kAdd>
HWY_NOINLINE void score_keys(OperandRows<typename Products::Operand> keys,
                             const float* HWY_RESTRICT queries, size_t depth,
                             float* HWY_RESTRICT scores, VF* largest) {
  const DF df;
  VF sums[kKeys][kCount];
#pragma GCC unroll 8
  for (size_t key = 0; key < kKeys; ++key) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kCount; ++v) {
      sums[key][v] = hn::Zero(df);
    }
  }
  for (size_t d = 0; d < depth; ++d) {
    VF query[kCount];
#pragma GCC unroll 3
    for (size_t v = 0; v < kCount; ++v) {
      query[v] = hn::Load(df, queries + (d * kWidth + v) * kLanes);
    }
#pragma GCC unroll 8
    for (size_t key = 0; key < kKeys; ++key) {
      const auto broadcast =
          keys.data[static_cast<ptrdiff_t>(key) * keys.stride + static_cast<ptrdiff_t>(d)];
#pragma GCC unroll 3
      for (size_t v = 0; v < kCount; ++v) {
        sums[key][v] = Products::mul_add(query[v], broadcast, sums[key][v]);
      }
    }
  }
#pragma GCC unroll 3
  for (size_t v = 0; v < kCount; ++v) {
    VF max = largest[v];
#pragma GCC unroll 8
    for (size_t key = 0; key < kKeys; ++key) {
      float* const to = scores + (key * kWidth + v) * kLanes;
      const VF score = kAdd ? add_bias(sums[key][v], hn::Load(df, to)) : sums[key][v];
      max = hn::Max(max, score);
      hn::Store(score, df, to);
    }
    largest[v] = max;
  }
}

// The same for keys [begin, end).
template <class Products, size_t kWidth, size_t kCount, bool kAdd>
HWY_INLINE void score_range(OperandRows<typename Products::Operand> keys, const float* queries,
                            size_t depth, size_t begin, size_t end, float* scores, VF* largest) {
  constexpr size_t kHalf = kStep / 2;
  size_t key = begin;
  const auto step = [&](auto keys_at_once) HWY_ATTR {
    constexpr size_t kKeys = decltype(keys_at_once)::value;
    for (; key + kKeys <= end; key += kKeys) {
      score_keys<Products, kKeys, kWidth, kCount, kAdd>(keys.from(key), queries, depth,
                                                        scores + key * kWidth * kLanes, largest);
    }
  };
  step(std::integral_constant<size_t, kStep>());
  step(std::integral_constant<size_t, kHalf>());
  step(std::integral_constant<size_t, 1>());
}

// scores -> 2^(scores - largest) for keys [begin, end) and kCount vectors, added up in `sums`.
// bfloat16 weights are packed in pairs of keys, in place: row key / 2 takes keys `key` and `key +
// 1`; `begin` is even.
template <class Products, size_t kWidth, size_t kCount>
HWY_INLINE void exponentiate_range(size_t begin, size_t end, float* HWY_RESTRICT scores,
                                   const VF* largest, VF* sums) {
  const DF df;
  VF most[kCount], sum[kCount];  // in registers
#pragma GCC unroll 3
  for (size_t v = 0; v < kCount; ++v) {
    most[v] = largest[v];
    sum[v] = sums[v];
  }
  const auto weigh = [&](size_t key, size_t v) HWY_ATTR {
    const VF score = hn::Sub(hn::Load(df, scores + (key * kWidth + v) * kLanes), most[v]);
    const VF weight = Products::kDepth == 1 ? exp2(score) : exp2_for_bfloat16(score);
    sum[v] = hn::Add(sum[v], weight);
    return weight;
  };
  if constexpr (Products::kDepth == 1) {
    for (size_t key = begin; key < end; ++key) {
#pragma GCC unroll 3
      for (size_t v = 0; v < kCount; ++v) {
        hn::Store(weigh(key, v), df, scores + (key * kWidth + v) * kLanes);
      }
    }
  } else {
    for (size_t key = begin; key < end; key += 2) {
#pragma GCC unroll 3
      for (size_t v = 0; v < kCount; ++v) {
        const VF first = weigh(key, v);
        const VF second = key + 1 < end ? weigh(key + 1, v) : hn::Zero(df);
        hn::Store(Products::pack(first, second), df, scores + (key / 2 * kWidth + v) * kLanes);
      }
    }
  }
#pragma GCC unroll 3
  for (size_t v = 0; v < kCount; ++v) {
    sums[v] = sum[v];
  }
}

// Keys [begin, end) of a block.
struct KeySpan {
  size_t begin, end;
};

// Keys [begins[v], ends[v]) of a block are what vector v of a tile computes; neither decreases with
// v, so that the vectors that compute a key are neighbours.
template <size_t kWidth>
struct Spans {
  size_t begins[kWidth], ends[kWidth];

  // Calls visit(first, count, begin, end) with neighbours and the keys that they compute and no
  // other vector; each vector has its keys in their order. `first` and `count` are constants.
  template <class Visit>
  HWY_INLINE void for_each(const Visit& visit) const {
    unrolled<0, kWidth>([&](auto first) HWY_ATTR {
      unrolled<1, kWidth - first + 1>([&](auto count) HWY_ATTR {
        constexpr size_t kFirst = first, kNext = kFirst + count;
        size_t begin = begins[kNext - 1], end = ends[kFirst];
        if constexpr (kFirst > 0) {
          begin = HWY_MAX(begin, ends[kFirst - 1]);
        }
        if constexpr (kNext < kWidth) {
          end = HWY_MIN(end, begins[kNext]);
        }
        if (begin < end) {
          visit(first, count, begin, end);
        }
      });
    });
  }
};

// Adds values * weights over rows [begin, end) of operands to kFeatures x [kFirst, kFirst + kCount)
// sums.
template <class Products, size_t kFeatures, size_t kWidth, size_t kFirst, size_t kCount>
HWY_INLINE void weigh_range(OperandRows<typename Products::Operand> values,
                            const float* HWY_RESTRICT weights, size_t begin, size_t end,
                            VF (&sums)[kFeatures][kWidth]) {
  const DF df;
  // Pointers that move: GCC would multiply row by stride for each row.
  const auto* HWY_RESTRICT value = values.data + static_cast<ptrdiff_t>(begin) * values.stride;
  weights += (begin * kWidth + kFirst) * kLanes;
  for (size_t row = begin; row < end; ++row, value += values.stride, weights += kWidth * kLanes) {
    VF weight[kCount];
#pragma GCC unroll 3
    for (size_t v = 0; v < kCount; ++v) {
      weight[v] = hn::Load(df, weights + v * kLanes);
    }
#pragma GCC unroll 8
    for (size_t d = 0; d < kFeatures; ++d) {
      const auto broadcast = value[d];
#pragma GCC unroll 3
      for (size_t v = 0; v < kCount; ++v) {
        sums[d][kFirst + v] = Products::mul_add(weight[v], broadcast, sums[d][kFirst + v]);
      }
    }
  }
}

// outputs[feature][vector] = outputs * decay + values * weights for kFeatures features.
template <class Products, size_t kFeatures, size_t kWidth>
HWY_NOINLINE void weigh_features(OperandRows<typename Products::Operand> values,
                                 const float* weights, const Spans<kWidth>& spans,
                                 const VF (&decay)[kWidth], bool first_block, float* outputs) {
  const DF df;
  VF sums[kFeatures][kWidth];
#pragma GCC unroll 8
  for (size_t d = 0; d < kFeatures; ++d) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      sums[d][v] = first_block
                       ? hn::Zero(df)
                       : hn::Mul(hn::Load(df, outputs + (d * kWidth + v) * kLanes), decay[v]);
    }
  }
  const auto rows = [](size_t keys) { return (keys + Products::kDepth - 1) / Products::kDepth; };
  spans.for_each([&](auto first, auto count, size_t begin, size_t end) HWY_ATTR {
    weigh_range<Products, kFeatures, kWidth, first, count>(values, weights, rows(begin), rows(end),
                                                           sums);
  });
#pragma GCC unroll 8
  for (size_t d = 0; d < kFeatures; ++d) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      hn::Store(sums[d][v], df, outputs + (d * kWidth + v) * kLanes);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

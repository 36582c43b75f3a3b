// The products of a tile, with tokens in lanes: of the keys and values around each token, which lie
// in panels at a shift, and of those that all tokens share, which are broadcast.
//
// Each is computed for a few keys, or features, at once and kWidth vectors of tokens, with their
// sums in registers. Not inlined: the sums need the registers to themselves.
#if defined(MOH_CPU_AGGREGATED_ATTENTION_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_AGGREGATED_ATTENTION_PRODUCTS_INL_H_
#undef MOH_CPU_AGGREGATED_ATTENTION_PRODUCTS_INL_H_
#else
#define MOH_CPU_AGGREGATED_ATTENTION_PRODUCTS_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "cpu/aggregated_attention/panel-inl.h"
#include "cpu/aggregated_attention/window-inl.h"
#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Calls step(begin, count) for [0, end) in parts of nearly one size, at most kStep; `count` is an
// integral_constant.
template <class Step>
HWY_INLINE void in_equal_steps(size_t end, const Step& step) {
  static_assert(kStep <= 8, "a case for each size");
  const size_t steps = (end + kStep - 1) / kStep;
  for (size_t i = 0; i < steps; ++i) {
    const size_t begin = end * i / steps;
    switch (end * (i + 1) / steps - begin) {
      case 1:
        step(begin, std::integral_constant<size_t, 1>());
        break;
      case 2:
        step(begin, std::integral_constant<size_t, 2>());
        break;
      case 3:
        step(begin, std::integral_constant<size_t, 3>());
        break;
      case 4:
        step(begin, std::integral_constant<size_t, 4>());
        break;
      case 5:
        step(begin, std::integral_constant<size_t, 5>());
        break;
      case 6:
        step(begin, std::integral_constant<size_t, 6>());
        break;
      case 7:
        step(begin, std::integral_constant<size_t, HWY_MIN(kStep, 7)>());
        break;
      default:
        step(begin, std::integral_constant<size_t, kStep>());
    }
  }
}

// Element (i, d) of a matrix at data + i * row + d * column.
struct Matrix {
  const float* data;
  size_t row, column;
  HWY_INLINE Matrix from(size_t i) const { return {data + i * row, row, column}; }
};

// Keys in a panel, each to be multiplied by its factor.
struct ScaledKeys {
  Panel keys;
  const float* factors;
};

// scores[l] = queries . keys[l] + biases[l] for kKeys offsets from `first` on, -inf where there is
// no neighbour.
template <size_t kKeys, size_t kWidth>
HWY_NOINLINE void score_neighbours(Panel queries, ScaledKeys keys, size_t depth,
                                   Neighbours neighbours, size_t first, const float* biases,
                                   Panel scores) {
  const DF df;
  VF sums[kKeys][kWidth];
  const float* at[kKeys];
#pragma GCC unroll 8
  for (size_t k = 0; k < kKeys; ++k) {
    at[k] = keys.keys.data + neighbours.shifts[first + k];
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      sums[k][v] = hn::Zero(df);
    }
  }
  for (size_t d = 0; d < depth; ++d) {
    VF query[kWidth];
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      query[v] = hn::Load(df, queries.row_at(d) + v * kLanes);
    }
#pragma GCC unroll 8
    for (size_t k = 0; k < kKeys; ++k) {
#pragma GCC unroll 3
      for (size_t v = 0; v < kWidth; ++v) {
        const VF key = hn::LoadU(df, at[k] + d * keys.keys.pitch + v * kLanes);
        sums[k][v] = hn::MulAdd(query[v], key, sums[k][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (size_t k = 0; k < kKeys; ++k) {
    const VF bias = hn::Set(df, biases[first + k]);
    const float* const factors = keys.factors + neighbours.shifts[first + k];
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      const VF factor = hn::LoadU(df, factors + v * kLanes);
      const VF score =
          hn::IfThenElse(neighbours.inside(v, first + k), hn::MulAdd(sums[k][v], factor, bias),
                         hn::Set(df, -kInfinity));
      hn::Store(score, df, scores.row_at(first + k) + v * kLanes);
    }
  }
}

// sums = keys . queries
template <size_t kKeys, size_t kWidth>
HWY_INLINE void multiply(Matrix keys, Panel queries, size_t depth, VF (&sums)[kKeys][kWidth]) {
  const DF df;
#pragma GCC unroll 8
  for (size_t k = 0; k < kKeys; ++k) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      sums[k][v] = hn::Zero(df);
    }
  }
  for (size_t d = 0; d < depth; ++d) {
    VF query[kWidth];
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      query[v] = hn::Load(df, queries.row_at(d) + v * kLanes);
    }
#pragma GCC unroll 8
    for (size_t k = 0; k < kKeys; ++k) {
      const VF key = hn::Set(df, keys.data[k * keys.row + d * keys.column]);
#pragma GCC unroll 3
      for (size_t v = 0; v < kWidth; ++v) {
        sums[k][v] = hn::MulAdd(query[v], key, sums[k][v]);
      }
    }
  }
}

// scores[k] = (scores[k] if `biased` +) keys[k] . queries; largest = max over k.
template <size_t kKeys, size_t kWidth>
HWY_NOINLINE void score_shared(Matrix keys, Panel queries, size_t depth, bool biased, Panel scores,
                               VF (&largest)[kWidth]) {
  const DF df;
  VF sums[kKeys][kWidth];
  multiply(keys, queries, depth, sums);
#pragma GCC unroll 3
  for (size_t v = 0; v < kWidth; ++v) {
    VF max = largest[v];
#pragma GCC unroll 8
    for (size_t k = 0; k < kKeys; ++k) {
      float* const to = scores.row_at(k) + v * kLanes;
      const VF score = biased ? hn::Add(sums[k][v], hn::Load(df, to)) : sums[k][v];
      max = hn::Max(max, score);
      hn::Store(score, df, to);
    }
    largest[v] = max;
  }
}

// terms[k] = (tokens[k] . queries) * factor + biases[k]
template <size_t kKeys, size_t kWidth>
HWY_NOINLINE void write_terms(Matrix tokens, Panel queries, size_t depth,
                              const VF (&factor)[kWidth], const float* biases, Panel terms) {
  const DF df;
  VF sums[kKeys][kWidth];
  multiply(tokens, queries, depth, sums);
#pragma GCC unroll 8
  for (size_t k = 0; k < kKeys; ++k) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      const VF term = hn::MulAdd(sums[k][v], factor[v], hn::Set(df, biases[k]));
      hn::Store(term, df, terms.row_at(k) + v * kLanes);
    }
  }
}

// scores -> 2^(scores - largest), added up in `sums`, for the first `count` rows.
template <size_t kWidth>
HWY_INLINE void exponentiate(Panel scores, size_t count, const VF (&largest)[kWidth],
                             VF (&sums)[kWidth]) {
  const DF df;
  for (size_t k = 0; k < count; ++k) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      float* const at = scores.row_at(k) + v * kLanes;
      const VF weight = exp2(hn::Sub(hn::Load(df, at), largest[v]));
      sums[v] = hn::Add(sums[v], weight);
      hn::Store(weight, df, at);
    }
  }
}

// outputs[f] = (values[., f] . weights) * factor for kFeatures features: the values that all tokens
// share, in rows of features.
template <size_t kFeatures, size_t kWidth>
HWY_NOINLINE void weigh_shared(Matrix values, Panel weights, size_t count,
                               const VF (&factor)[kWidth], Panel outputs) {
  const DF df;
  VF sums[kFeatures][kWidth];
  multiply({values.data, values.column, values.row}, weights, count, sums);
#pragma GCC unroll 8
  for (size_t f = 0; f < kFeatures; ++f) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      hn::Store(hn::Mul(sums[f][v], factor[v]), df, outputs.row_at(f) + v * kLanes);
    }
  }
}

// outputs[f] += values[f] . weights for kFeatures features, over the neighbours that there are.
template <size_t kFeatures, size_t kWidth>
HWY_NOINLINE void weigh_neighbours(Panel values, Neighbours neighbours, Panel weights,
                                   Panel outputs) {
  const DF df;
  VF sums[kFeatures][kWidth];
#pragma GCC unroll 8
  for (size_t f = 0; f < kFeatures; ++f) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      sums[f][v] = hn::Load(df, outputs.row_at(f) + v * kLanes);
    }
  }
  for (size_t l = 0; l < neighbours.count; ++l) {
    const float* const at = values.data + neighbours.shifts[l];
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      const VF weight = hn::Load(df, weights.row_at(l) + v * kLanes);
      const auto inside = neighbours.inside(v, l);
#pragma GCC unroll 8
      for (size_t f = 0; f < kFeatures; ++f) {
        const VF value =
            hn::IfThenElseZero(inside, hn::LoadU(df, at + f * values.pitch + v * kLanes));
        sums[f][v] = hn::MulAdd(weight, value, sums[f][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (size_t f = 0; f < kFeatures; ++f) {
#pragma GCC unroll 3
    for (size_t v = 0; v < kWidth; ++v) {
      hn::Store(sums[f][v], df, outputs.row_at(f) + v * kLanes);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

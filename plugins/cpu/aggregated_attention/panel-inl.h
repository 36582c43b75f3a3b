// Panels: a row for each feature, a token in each lane. Brings tensors into panels and back.
#if defined(MOH_CPU_AGGREGATED_ATTENTION_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_AGGREGATED_ATTENTION_PANEL_INL_H_
#undef MOH_CPU_AGGREGATED_ATTENTION_PANEL_INL_H_
#else
#define MOH_CPU_AGGREGATED_ATTENTION_PANEL_INL_H_
#endif

#include <type_traits>

#include "cpu/scratch.h"
#include "cpu/simd/quads-inl.h"
#include "cpu/simd/vector-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Row r starts at data + r * pitch.
struct Panel {
  float* data;
  size_t pitch;

  HWY_INLINE float* row_at(size_t row) const { return data + row * pitch; }
  HWY_INLINE Panel from(size_t row, size_t column) const { return {row_at(row) + column, pitch}; }
};

// The pitch of a panel with room for `columns`, and for a vector that starts at any of them. Odd
// in vectors: rows then do not push each other out of the cache.
constexpr size_t panel_pitch(size_t columns) {
  return (round_up(columns, kLanes) / kLanes + 1) / 2 * 2 * kLanes + kLanes;
}

// Rows of a panel of `size` features: they come and go in fours.
constexpr size_t panel_rows(size_t size) { return round_up(size, kQuad); }

// Rows of a tensor, `stride` elements apart.
template <typename T>
struct TokenRows {
  T* data;
  ptrdiff_t stride;

  HWY_INLINE T* row_at(size_t row) const { return data + static_cast<ptrdiff_t>(row) * stride; }
};

// Asks for `count` rows of `size` elements: they are apart from each other, so the processor does
// not foresee them.
template <typename T>
HWY_INLINE void prefetch(TokenRows<T> rows, size_t count, size_t size) {
  constexpr size_t kLine = 64 / sizeof(T);
  for (size_t row = 0; row < count; ++row) {
    for (size_t d = 0; d + kLine < size; d += kLine) {
      hwy::Prefetch(rows.row_at(row) + d);
    }
    hwy::Prefetch(rows.row_at(row) + size - 1);
  }
}

// Calls step(d, count) for features [d, d + count) of `size`, in fours. Where fours do not fit, the
// last one begins earlier; only of fewer than four features it is a smaller one.
template <class Step>
HWY_INLINE void in_quads(size_t size, const Step& step) {
  if (size < kQuad) {
    return step(0, size);
  }
  for (size_t d = 0; d + kQuad <= size; d += kQuad) {
    step(d, std::integral_constant<size_t, kQuad>());
  }
  if (size % kQuad != 0) {
    step(size - kQuad, std::integral_constant<size_t, kQuad>());
  }
}

// Up to 4 features; the others are 0.
template <typename T>
HWY_INLINE VQuad load_quad_part(const T* from, size_t count) {
  HWY_ALIGN float floats[kQuad] = {};
  for (size_t d = 0; d < count; ++d) {
    floats[d] = scalar_of(from[d]);
  }
  return hn::Load(DQuad(), floats);
}

template <typename T>
HWY_INLINE void store_quad_part(VQuad quad, T* to, size_t count) {
  T elements[kQuad];
  store_quad(quad, elements);
  for (size_t d = 0; d < count; ++d) {
    to[d] = elements[d];
  }
}

// Calls store(d, features) for each of `size` features of kLanes tokens, for some of them twice.
// row(i) is where token i begins.
template <class Row, class Store>
HWY_INLINE void pack_rows_of(const Row& row, size_t size, const Store& store) {
  in_quads(size, [&](size_t d, auto count) HWY_ATTR {
    VF features[kQuad];
    pack_quads(
        [&](size_t i) HWY_ATTR {
          if constexpr (std::is_same<decltype(count), size_t>::value) {
            return load_quad_part(row(i) + d, count);
          } else {
            return load_quad(row(i) + d);
          }
        },
        features);
#pragma GCC unroll 4
    for (size_t j = 0; j < kQuad; ++j) {
      store(d + j, features[j]);
    }
  });
}

// kLanes tokens of `size` features, the last of `count` repeated, to the panel's first column.
template <typename T>
HWY_INLINE void pack_tokens(TokenRows<const T> tokens, size_t count, size_t size, Panel panel) {
  const auto store = [&](size_t d, VF features)
                         HWY_ATTR { hn::StoreU(features, DF(), panel.row_at(d)); };
  if (count >= kLanes) {
    pack_rows_of([&](size_t i) HWY_ATTR { return tokens.row_at(i); }, size, store);
  } else {
    pack_rows_of([&](size_t i) HWY_ATTR { return tokens.row_at(HWY_MIN(i, count - 1)); }, size,
                 store);
  }
}

// The reverse, times `factor`, for the first `count` tokens; 0 for tokens that are not `open`.
template <typename T>
HWY_INLINE void unpack_tokens(Panel panel, VF factor, hn::Mask<DF> open, size_t count, size_t size,
                              TokenRows<T> tokens) {
  const auto unpack = [&](size_t d, const auto& store) HWY_ATTR {
    VF features[kQuad];
#pragma GCC unroll 4
    for (size_t j = 0; j < kQuad; ++j) {
      features[j] = hn::IfThenElseZero(open, hn::Mul(hn::LoadU(DF(), panel.row_at(d + j)), factor));
    }
    unpack_quads(features, store);
  };
  if (size >= kQuad && count == kLanes) {
    return in_quads(size, [&](size_t d, size_t) HWY_ATTR {
      unpack(d, [&](size_t i, VQuad quad) HWY_ATTR { store_quad(quad, tokens.row_at(i) + d); });
    });
  }
  in_quads(size, [&](size_t d, size_t features) HWY_ATTR {
    unpack(d, [&](size_t i, VQuad quad) HWY_ATTR {
      if (i < count) {
        store_quad_part(quad, tokens.row_at(i) + d, features);
      }
    });
  });
}

// What each token's features are multiplied by to have length 1.
HWY_INLINE VF inverse_lengths(Panel panel, size_t size, float epsilon) {
  const DF df;
  VF squares = hn::Zero(df);
  for (size_t d = 0; d < size; ++d) {
    const VF features = hn::LoadU(df, panel.row_at(d));
    squares = hn::MulAdd(features, features, squares);
  }
  return hn::Div(hn::Set(df, 1.0f), hn::Max(hn::Sqrt(squares), hn::Set(df, epsilon)));
}

HWY_INLINE void scale_column(Panel panel, size_t size, VF factor) {
  for (size_t d = 0; d < size; ++d) {
    hn::StoreU(hn::Mul(hn::LoadU(DF(), panel.row_at(d)), factor), DF(), panel.row_at(d));
  }
}

// The first `count` elements as float32, times `factor`.
template <typename T>
HWY_INLINE void copy_floats(const T* from, size_t count, float factor, float* to) {
  for (size_t i = 0; i < count; i += kLanes) {
    store_part(hn::Mul(load_part(from, i, count), hn::Set(DF(), factor)), to, i, count);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

// Panels: a row for each feature, a token in each lane. Brings tensors into panels and back.
#if defined(MOH_CPU_AGGREGATED_ATTENTION_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_AGGREGATED_ATTENTION_PANEL_INL_H_
#undef MOH_CPU_AGGREGATED_ATTENTION_PANEL_INL_H_
#else
#define MOH_CPU_AGGREGATED_ATTENTION_PANEL_INL_H_
#endif

#include "cpu/attention/operands-inl.h"
#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Row r starts at data + r * pitch.
struct Panel {
  float* data;
  size_t pitch;

  HWY_INLINE float* Row(size_t row) const { return data + row * pitch; }
  HWY_INLINE Panel From(size_t column) const { return {data + column, pitch}; }
};

// The pitch of a panel with room for `columns`, and for a vector that starts at any of them. Odd
// in vectors: rows then do not push each other out of the cache.
constexpr size_t PanelPitch(size_t columns) {
  return (RoundUp(columns, kLanes) / kLanes + 1) / 2 * 2 * kLanes + kLanes;
}

// Rows of a panel of `size` features: what comes in and goes out is in squares of kLanes.
constexpr size_t PanelRows(size_t size) { return RoundUp(size, kLanes); }

// Rows of a tensor, `stride` elements apart.
template <typename T>
struct TokenRows {
  T* data;
  ptrdiff_t stride;

  HWY_INLINE T* Row(size_t row) const { return data + static_cast<ptrdiff_t>(row) * stride; }
};

// kLanes tokens of `size` features, the last of `count` repeated, to the panel's first column.
// Returns the sum of squares of each token.
template <typename T>
HWY_INLINE VF PackTokens(TokenRows<const T> tokens, size_t count, size_t size, Panel panel) {
  VF squares = hn::Zero(DF());
  for (size_t d = 0; d < size; d += kLanes) {
    VF block[kLanes];
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) {
      block[i] = LoadPart(tokens.Row(HWY_MIN(i, count - 1)), d, size);
    }
    Transpose(block);
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) {
      squares = hn::MulAdd(block[i], block[i], squares);
      hn::StoreU(block[i], DF(), panel.Row(d + i));
    }
  }
  return squares;
}

// The reverse, times `factor`, for the first `count` tokens; 0 for tokens that are not `open`.
template <typename T>
HWY_INLINE void UnpackTokens(Panel panel, VF factor, hn::Mask<DF> open, size_t count, size_t size,
                             TokenRows<T> tokens) {
  for (size_t d = 0; d < size; d += kLanes) {
    VF block[kLanes];
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) {
      block[i] = hn::IfThenElseZero(open, hn::Mul(hn::LoadU(DF(), panel.Row(d + i)), factor));
    }
    Transpose(block);
    for (size_t i = 0; i < count; ++i) {
      StorePart(block[i], tokens.Row(i), d, size);
    }
  }
}

// What a vector of this sum of squares is multiplied by to have length 1.
HWY_INLINE VF InverseLength(VF squares, float epsilon) {
  const DF df;
  return hn::Div(hn::Set(df, 1.0f), hn::Max(hn::Sqrt(squares), hn::Set(df, epsilon)));
}

HWY_INLINE void ScaleColumn(Panel panel, size_t size, VF factor) {
  for (size_t d = 0; d < size; ++d) {
    hn::StoreU(hn::Mul(hn::LoadU(DF(), panel.Row(d)), factor), DF(), panel.Row(d));
  }
}

// The first `count` elements as float32, times `factor`.
template <typename T>
HWY_INLINE void CopyFloats(const T* from, size_t count, float factor, float* to) {
  for (size_t i = 0; i < count; i += kLanes) {
    StorePart(hn::Mul(LoadPart(from, i, count), hn::Set(DF(), factor)), to, i, count);
  }
}

// A token's features as float32; to length 1 if `normalize`.
template <typename T>
HWY_INLINE void CopyToken(const T* from, size_t size, bool normalize, float epsilon, float* to) {
  CopyFloats(from, size, 1.0f, to);
  if (!normalize) {
    return;
  }
  const DF df;
  VF squares = hn::Zero(df);
  for (size_t d = 0; d < size; d += kLanes) {
    const VF part = LoadPart(to, d, size);
    squares = hn::MulAdd(part, part, squares);
  }
  const VF factor = InverseLength(hn::Set(df, hn::ReduceSum(df, squares)), epsilon);
  for (size_t d = 0; d < size; d += kLanes) {
    StorePart(hn::Mul(LoadPart(to, d, size), factor), to, d, size);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

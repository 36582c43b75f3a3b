// The vectors that every kernel uses: float32 in all lanes of a register.
#if defined(MOH_CPU_SIMD_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_SIMD_VECTOR_INL_H_
#undef MOH_CPU_SIMD_VECTOR_INL_H_
#else
#define MOH_CPU_SIMD_VECTOR_INL_H_
#endif

#include <cstddef>
#include <limits>
#include <type_traits>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
constexpr size_t kLanes = HWY_MAX_LANES_D(DF);

// AVX-512 and NEON have 32 vector registers, older x86 has 16.
constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM;

// A product with rows in lanes fills the registers with sums: kStep x kMaxVectors of them, one
// register for each vector of rows, one for a broadcast.
constexpr size_t kMaxVectors = kManyRegisters ? 3 : 2;
constexpr size_t kStep = kManyRegisters ? 8 : 6;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kSmallestExponent = -126.0f;  // of a normal number

// power * 2^whole where x >= kSmallestExponent, else 0; NaN stays NaN.
HWY_INLINE VF scale_power(VF power, VF whole, VF x) {
#if HWY_TARGET <= HWY_AVX3
  // Two instructions that Highway has no name for: times 2^whole, and 0 where a bit is not set.
  const __mmask16 kept = _mm512_cmp_ps_mask(x.raw, _mm512_set1_ps(kSmallestExponent), _CMP_NLT_UQ);
  return VF{_mm512_maskz_scalef_ps(kept, power.raw, whole.raw)};
#else
  const DF df;
  const hn::RebindToSigned<DF> di;
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, whole), hn::Set(di, 127)));
  const VF result = hn::Mul(power, hn::BitCast(df, exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(df, kSmallestExponent)), result);
#endif
}

// 2^x, within 2e-7 relative, and 2^0 is exactly 1: a block that a row sees nothing of changes no
// bit of it. 0 for -inf and below the smallest normal number; NaN stays NaN. A polynomial of degree
// 5 on [-0.5, 0.5], fitted for the least relative error with its first coefficient held at 1.
HWY_INLINE VF exp2(VF x) {
  const DF df;
  const VF whole = hn::Round(x);
  const VF rest = hn::Sub(x, whole);
  VF p = hn::Set(df, 0.001326472731307149f);
  p = hn::MulAdd(p, rest, hn::Set(df, 0.009671512991189957f));
  p = hn::MulAdd(p, rest, hn::Set(df, 0.05550733581185341f));
  p = hn::MulAdd(p, rest, hn::Set(df, 0.24022242426872253f));
  p = hn::MulAdd(p, rest, hn::Set(df, 0.6931470036506653f));
  p = hn::MulAdd(p, rest, hn::Set(df, 1.0f));
  return scale_power(p, whole, x);
}

// The same within 1.1e-4, for what is rounded to bfloat16, by 4e-3 at most. Of degree 3.
HWY_INLINE VF exp2_for_bfloat16(VF x) {
  const DF df;
  const VF whole = hn::Round(x);
  const VF rest = hn::Sub(x, whole);
  VF p = hn::Set(df, 0.05500876620f);
  p = hn::MulAdd(p, rest, hn::Set(df, 0.242210995f));
  p = hn::MulAdd(p, rest, hn::Set(df, 0.693282974f));
  p = hn::MulAdd(p, rest, hn::Set(df, 1.0f));
  return scale_power(p, whole, x);
}

// A score with its bias: -inf where the bias is, whatever the score is.
HWY_INLINE VF add_bias(VF score, VF bias) {
  const VF hidden = hn::Set(DF(), -kInfinity);
  return hn::IfThenElse(hn::Eq(bias, hidden), hidden, hn::Add(score, bias));
}

// Transposes a square block: lane j of rows[i] goes to lane i of rows[j].
HWY_INLINE void transpose(VF (&rows)[kLanes]) {
  const DF df;
  const hn::Repartition<double, DF> dd;
  const auto pairs = [&](VF x) HWY_ATTR { return hn::BitCast(dd, x); };
  static_assert(kLanes == 4 || kLanes == 8 || kLanes == 16,
                "a block of 4 lanes is a quarter, a half or all of a vector");
  // In blocks of 4 lanes: afterwards block b of rows[4 * i + j] is column 4 * b + j of rows 4 * i
  // to 4 * i + 3.
#pragma GCC unroll 4
  for (size_t i = 0; i < kLanes; i += 4) {
    const VF low01 = hn::InterleaveLower(df, rows[i], rows[i + 1]),
             high01 = hn::InterleaveUpper(df, rows[i], rows[i + 1]);
    const VF low23 = hn::InterleaveLower(df, rows[i + 2], rows[i + 3]);
    const VF high23 = hn::InterleaveUpper(df, rows[i + 2], rows[i + 3]);
    rows[i] = hn::BitCast(df, hn::InterleaveLower(dd, pairs(low01), pairs(low23)));
    rows[i + 1] = hn::BitCast(df, hn::InterleaveUpper(dd, pairs(low01), pairs(low23)));
    rows[i + 2] = hn::BitCast(df, hn::InterleaveLower(dd, pairs(high01), pairs(high23)));
    rows[i + 3] = hn::BitCast(df, hn::InterleaveUpper(dd, pairs(high01), pairs(high23)));
  }
  // Then the blocks.
#if HWY_TARGET <= HWY_AVX3
  constexpr int kEven = 0x88, kOdd = 0xDD;
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j) {
    const __m512 even01 = _mm512_shuffle_f32x4(rows[j].raw, rows[4 + j].raw, kEven);
    const __m512 odd01 = _mm512_shuffle_f32x4(rows[j].raw, rows[4 + j].raw, kOdd);
    const __m512 even23 = _mm512_shuffle_f32x4(rows[8 + j].raw, rows[12 + j].raw, kEven);
    const __m512 odd23 = _mm512_shuffle_f32x4(rows[8 + j].raw, rows[12 + j].raw, kOdd);
    rows[j] = VF{_mm512_shuffle_f32x4(even01, even23, kEven)};
    rows[4 + j] = VF{_mm512_shuffle_f32x4(odd01, odd23, kEven)};
    rows[8 + j] = VF{_mm512_shuffle_f32x4(even01, even23, kOdd)};
    rows[12 + j] = VF{_mm512_shuffle_f32x4(odd01, odd23, kOdd)};
  }
#else
  if constexpr (kLanes == 8) {
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) {
      const VF first = rows[j], second = rows[kLanes / 2 + j];
      rows[j] = hn::ConcatLowerLower(df, second, first);
      rows[kLanes / 2 + j] = hn::ConcatUpperUpper(df, second, first);
    }
  }
#endif
}

template <typename T>
HWY_INLINE VF widen(hn::Vec<hn::Rebind<T, DF>> narrow) {
  const VF wide = hn::PromoteTo(DF(), narrow);
#if HWY_TARGET == HWY_SSE2
  if constexpr (std::is_same<T, hwy::float16_t>::value) {  // Highway 1.2 makes large numbers of Inf
                                                           // and NaN here
    const hn::RebindToUnsigned<DF> du32;
    const auto largest_exponent =
        hn::Set(du32, 0x0F800000u + 0x38000000u);  // of float16, in float32
    const auto bits = hn::BitCast(du32, wide), infinity = hn::Set(du32, 0x7F800000u);
    const auto special = hn::Eq(hn::And(bits, infinity), largest_exponent);
    return hn::BitCast(DF(), hn::Or(bits, hn::IfThenElseZero(special, infinity)));
  }
#endif
  return wide;
}

// One vector from memory of any floating-point type.
HWY_INLINE VF load_floats(const float* from) { return hn::LoadU(DF(), from); }
template <typename T>
HWY_INLINE VF load_floats(const T* from) {
  return widen<T>(hn::LoadU(hn::Rebind<T, DF>(), from));
}

// The same of the first `count` lanes; the others are 0. Reads nothing beyond them.
HWY_INLINE VF load_first(const float* from, size_t count) { return hn::LoadN(DF(), from, count); }
template <typename T>
HWY_INLINE VF load_first(const T* from, size_t count) {
  return widen<T>(hn::LoadN(hn::Rebind<T, DF>(), from, count));
}

HWY_INLINE void store_floats(VF value, float* to) { hn::StoreU(value, DF(), to); }
template <typename T>
HWY_INLINE void store_floats(VF value, T* to) {
  const hn::Rebind<T, DF> dt;
  hn::StoreU(hn::DemoteTo(dt, value), dt, to);
}

HWY_INLINE void store_first(VF value, float* to, size_t count) {
  hn::StoreN(value, DF(), to, count);
}
template <typename T>
HWY_INLINE void store_first(VF value, T* to, size_t count) {
  const hn::Rebind<T, DF> dt;
  hn::StoreN(hn::DemoteTo(dt, value), dt, to, count);
}

// Part of a row of `size` elements: kLanes from `at` on, with zeros behind the end.
template <typename T>
HWY_INLINE VF load_part(const T* row, size_t at, size_t size) {
  return size - at >= kLanes ? load_floats(row + at) : load_first(row + at, size - at);
}

template <typename T>
HWY_INLINE void store_part(VF part, T* row, size_t at, size_t size) {
  if (size - at >= kLanes) {
    store_floats(part, row + at);
  } else {
    store_first(part, row + at, size - at);
  }
}

// Calls call(T()) for the type T of tensors' elements.
template <typename Call>
HWY_INLINE void with_type(DType dtype, const Call& call) {
  switch (dtype) {
    case DType::kFloat32:
      return call(float());
    case DType::kFloat16:
      return call(hwy::float16_t());
    default:
      return call(hwy::bfloat16_t());
  }
}

HWY_INLINE float scalar_of(float x) { return x; }
HWY_INLINE float scalar_of(hwy::float16_t x) { return hwy::F32FromF16(x); }
HWY_INLINE float scalar_of(hwy::bfloat16_t x) { return hwy::F32FromBF16(x); }

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

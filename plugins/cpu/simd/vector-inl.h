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

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kSmallestExponent = -126.0f;  // of a normal number

// 2^x, within 1e-7 relative; 0 for -inf and below the smallest normal number; NaN stays NaN.
// Degree-5 minimax polynomial on [-0.5, 0.5].
HWY_INLINE VF Exp2(VF x) {
  const DF df;
  const VF whole = hn::Round(x);
  const VF rest = hn::Sub(x, whole);
  VF p = hn::Set(df, 0.0013276470126584172f);
  p = hn::MulAdd(p, rest, hn::Set(df, 0.009675540961325169f));
  p = hn::MulAdd(p, rest, hn::Set(df, 0.05550713464617729f));
  p = hn::MulAdd(p, rest, hn::Set(df, 0.24022120237350464f));
  p = hn::MulAdd(p, rest, hn::Set(df, 0.6931469440460205f));
  p = hn::MulAdd(p, rest, hn::Set(df, 1.0000001192092896f));
#if HWY_TARGET <= HWY_AVX3
  // Two instructions that Highway has no name for: times 2^whole, and 0 where a bit is not set.
  const __mmask16 kept = _mm512_cmp_ps_mask(x.raw, _mm512_set1_ps(kSmallestExponent), _CMP_NLT_UQ);
  return VF{_mm512_maskz_scalef_ps(kept, p.raw, whole.raw)};
#else
  const hn::RebindToSigned<DF> di;
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, whole), hn::Set(di, 127)));
  const VF result = hn::Mul(p, hn::BitCast(df, exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(df, kSmallestExponent)), result);
#endif
}

// Transposes a square block: lane j of rows[i] goes to lane i of rows[j].
HWY_INLINE void Transpose(VF (&rows)[kLanes]) {
  const DF df;
#pragma GCC unroll 4
  for (size_t round = 1; round < kLanes; round *= 2) {
    VF mixed[kLanes];
#pragma GCC unroll 8
    for (size_t i = 0; i < kLanes / 2; ++i) {
      mixed[2 * i] = hn::InterleaveWholeLower(df, rows[i], rows[i + kLanes / 2]);
      mixed[2 * i + 1] = hn::InterleaveWholeUpper(df, rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) rows[i] = mixed[i];
  }
}

template <typename T>
HWY_INLINE VF Widen(hn::Vec<hn::Rebind<T, DF>> narrow) {
  const VF wide = hn::PromoteTo(DF(), narrow);
#if HWY_TARGET == HWY_SSE2
  if constexpr (std::is_same<T, hwy::float16_t>::value) {  // Highway 1.2 makes large numbers of Inf and NaN here
    const hn::RebindToUnsigned<DF> du32;
    const auto largest_exponent = hn::Set(du32, 0x0F800000u + 0x38000000u);  // of float16, in float32
    const auto bits = hn::BitCast(du32, wide), infinity = hn::Set(du32, 0x7F800000u);
    const auto special = hn::Eq(hn::And(bits, infinity), largest_exponent);
    return hn::BitCast(DF(), hn::Or(bits, hn::IfThenElseZero(special, infinity)));
  }
#endif
  return wide;
}

// One vector from memory of any floating-point type.
HWY_INLINE VF LoadFloats(const float* from) { return hn::LoadU(DF(), from); }
template <typename T>
HWY_INLINE VF LoadFloats(const T* from) {
  return Widen<T>(hn::LoadU(hn::Rebind<T, DF>(), from));
}

// The same of the first `count` lanes; the others are 0. Reads nothing beyond them.
HWY_INLINE VF LoadFirst(const float* from, size_t count) { return hn::LoadN(DF(), from, count); }
template <typename T>
HWY_INLINE VF LoadFirst(const T* from, size_t count) {
  return Widen<T>(hn::LoadN(hn::Rebind<T, DF>(), from, count));
}

HWY_INLINE void StoreFloats(VF value, float* to) { hn::StoreU(value, DF(), to); }
template <typename T>
HWY_INLINE void StoreFloats(VF value, T* to) {
  const hn::Rebind<T, DF> dt;
  hn::StoreU(hn::DemoteTo(dt, value), dt, to);
}

HWY_INLINE void StoreFirst(VF value, float* to, size_t count) { hn::StoreN(value, DF(), to, count); }
template <typename T>
HWY_INLINE void StoreFirst(VF value, T* to, size_t count) {
  const hn::Rebind<T, DF> dt;
  hn::StoreN(hn::DemoteTo(dt, value), dt, to, count);
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

// attn_mask as biases of the scores: log2(e) * mask, or 0 and -inf for a boolean one.
#if defined(MOH_CPU_ATTENTION_MASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_ATTENTION_MASK_INL_H_
#undef MOH_CPU_ATTENTION_MASK_INL_H_
#else
#define MOH_CPU_ATTENTION_MASK_INL_H_
#endif

#include "cpu/attention/addressing.h"
#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE VF bias_of(VF mask) {
  const DF df;
  const VF scaled = hn::Mul(mask, hn::Set(df, kLog2E));
  // A large finite bias, often the lowest number, stays finite: a row of nothing else is an
  // ordinary softmax. Biases beyond 2.3e38 become equal by that.
  const auto overflowed = hn::AndNot(hn::IsInf(mask), hn::IsInf(scaled));
  return hn::IfThenElse(overflowed, hn::CopySign(hn::Set(df, -kLowest), mask), scaled);
}

// Biases of up to kLanes keys in a row: `count` of them from `row` on.
template <typename M>
HWY_INLINE VF load_bias(const M* row, size_t count) {
  return bias_of(count == kLanes ? load_floats(row) : load_first(row, count));
}
HWY_INLINE VF load_bias(const uint8_t* row, size_t count) {
  const DF df;
  const hn::Rebind<uint8_t, DF> du8;
  const hn::RebindToUnsigned<DF> du32;
  const auto bytes = count == kLanes ? hn::LoadU(du8, row) : hn::LoadN(du8, row, count);
  const auto seen = hn::Ne(hn::PromoteTo(du32, bytes), hn::Zero(du32));
  return hn::IfThenElseZero(hn::Not(hn::RebindMask(df, seen)), hn::Set(df, -kInfinity));
}

// One bias for every key: the mask has no key axis.
template <typename M>
HWY_INLINE VF broadcast_bias(const M* row) {
  return bias_of(hn::Set(DF(), scalar_of(*row)));
}
HWY_INLINE VF broadcast_bias(const uint8_t* row) {
  return hn::Set(DF(), *row != 0 ? 0.0f : -kInfinity);
}

// The biases of `count` <= kLanes keys from `key` on, of a row that begins at `row`.
template <typename M>
HWY_INLINE VF row_bias(const AttentionMask& mask, const M* row, size_t key, size_t count) {
  return mask.key == 0 ? broadcast_bias(row) : load_bias(row + key, count);
}

// The same of a row that begins `row` elements into the mask.
HWY_INLINE VF row_bias(const AttentionMask& mask, ptrdiff_t row, size_t key, size_t count) {
  switch (mask.dtype) {
    case DType::kBool:
      return row_bias(mask, static_cast<const uint8_t*>(mask.data) + row, key, count);
    case DType::kFloat32:
      return row_bias(mask, static_cast<const float*>(mask.data) + row, key, count);
    case DType::kFloat16:
      return row_bias(mask, static_cast<const hwy::float16_t*>(mask.data) + row, key, count);
    default:
      return row_bias(mask, static_cast<const hwy::bfloat16_t*>(mask.data) + row, key, count);
  }
}

// Whether a bias of keys [begin, end) of a row is above `least`, or NaN.
inline bool mask_shows(const AttentionMask& mask, ptrdiff_t row, size_t begin, size_t end,
                       float least) {
  const DF df;
  for (size_t key = begin; key < end; key += kLanes) {
    const size_t count = HWY_MIN(kLanes, end - key);
    const auto hidden = hn::Le(row_bias(mask, row, key, count), hn::Set(df, least));
    if (!hn::AllFalse(df, hn::AndNot(hidden, hn::FirstN(df, count)))) {
      return true;
    }
  }
  return false;
}

// What a block of biases does to its scores. Decided for kLanes keys at a time.
struct MaskEffect {
  size_t first_seen, last_seen;  // no row sees a key outside [first_seen, last_seen)
  bool neutral;                  // every bias is 0
};

// NaN counts as seen and as a change. (Hence no Ne, which is false for NaN on some targets.)
class MaskObserver {
 public:
  HWY_INLINE MaskObserver() : hidden_(hn::Not(hn::MaskFalse(DF()))), neutral_(hidden_) {}
  HWY_INLINE void observe(VF biases, VF least) {
    const DF df;
    hidden_ = hn::And(hidden_, hn::Le(biases, least));
    neutral_ = hn::And(neutral_, hn::Eq(biases, hn::Zero(df)));
  }
  HWY_INLINE bool seen() const { return !hn::AllTrue(DF(), hidden_); }
  HWY_INLINE bool neutral() const { return hn::AllTrue(DF(), neutral_); }

 private:
  hn::Mask<DF> hidden_, neutral_;
};

// biases[key][vector] of keys [key_begin, key_begin + key_count), for the rows that begin at `rows`
// in the mask. A bias up to least[row] hides.
template <typename M, size_t kWidth>
MaskEffect write_biases(const AttentionMask& mask, const ptrdiff_t* rows, const float* least,
                        size_t key_begin, size_t key_count, float* biases) {
  const DF df;
  const auto* data = static_cast<const M*>(mask.data);
  const bool same_for_all_rows = mask.query == 0 && mask.head == 0;
  MaskEffect effect{key_count, 0, true};
  for (size_t key = 0; key < key_count; key += kLanes) {
    const size_t count = HWY_MIN(kLanes, key_count - key);
    MaskObserver observer;
    VF block[kLanes];  // [key], a row in each lane
    if (same_for_all_rows) {
      HWY_ALIGN float row[kLanes];
      hn::Store(row_bias(mask, data + rows[0], key_begin + key, count), df, row);
      for (size_t i = 0; i < kLanes; ++i) {
        block[i] = hn::Set(df, row[i]);
      }
    }
    for (size_t v = 0; v < kWidth; ++v) {
      const VF limit = hn::LoadU(df, least + v * kLanes);
      if (!same_for_all_rows) {
        for (size_t lane = 0; lane < kLanes; ++lane) {
          block[lane] = row_bias(mask, data + rows[v * kLanes + lane], key_begin + key, count);
        }
        transpose(block);
      }
      for (size_t i = 0; i < count; ++i) {
        observer.observe(block[i], limit);
        hn::Store(block[i], df, biases + ((key + i) * kWidth + v) * kLanes);
      }
    }
    effect.neutral &= observer.neutral();
    if (observer.seen()) {
      effect.first_seen = HWY_MIN(effect.first_seen, key);
      effect.last_seen = key + count;
    }
  }
  return effect;
}

template <size_t kWidth>
MaskEffect write_biases(const AttentionMask& mask, const ptrdiff_t* rows, const float* least,
                        size_t key_begin, size_t key_count, float* biases) {
  switch (mask.dtype) {
    case DType::kBool:
      return write_biases<uint8_t, kWidth>(mask, rows, least, key_begin, key_count, biases);
    case DType::kFloat32:
      return write_biases<float, kWidth>(mask, rows, least, key_begin, key_count, biases);
    case DType::kFloat16:
      return write_biases<hwy::float16_t, kWidth>(mask, rows, least, key_begin, key_count, biases);
    default:
      return write_biases<hwy::bfloat16_t, kWidth>(mask, rows, least, key_begin, key_count, biases);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

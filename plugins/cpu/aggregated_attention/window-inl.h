// Which neighbours of a token are inside the image.
#if defined(MOH_CPU_AGGREGATED_ATTENTION_WINDOW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_AGGREGATED_ATTENTION_WINDOW_INL_H_
#undef MOH_CPU_AGGREGATED_ATTENTION_WINDOW_INL_H_
#else
#define MOH_CPU_AGGREGATED_ATTENTION_WINDOW_INL_H_
#endif

#include <cstdint>

#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// A mask in memory; LoadMaskBits may read 8 bytes.
constexpr size_t kMaskBytes = (kLanes + 7) / 8;
constexpr size_t kMaskSlack = 8;

// Row and column of kLanes consecutive pixels of an image.
class Pixels {
 public:
  Pixels(size_t first, int32_t height, int32_t width) : height_(height), width_(width) {
    HWY_ALIGN int32_t rows[kLanes], columns[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) {
      rows[lane] = static_cast<int32_t>((first + lane) / static_cast<size_t>(width));
      columns[lane] = static_cast<int32_t>((first + lane) % static_cast<size_t>(width));
    }
    row_ = hn::Load(DI(), rows);
    column_ = hn::Load(DI(), columns);
  }

  // To the next kLanes pixels.
  void Next() {
    const DI di;
    const auto width = hn::Set(di, width_);
    column_ = hn::Add(column_, hn::Set(di, static_cast<int32_t>(kLanes)));
    for (auto beyond = hn::Ge(column_, width); !hn::AllFalse(di, beyond);
         beyond = hn::Ge(column_, width)) {
      column_ = hn::Sub(column_, hn::IfThenElseZero(beyond, width));
      row_ = hn::Add(row_, hn::IfThenElseZero(beyond, hn::Set(di, 1)));
    }
  }

  // Whether the pixel so many rows and columns away is inside the image.
  HWY_INLINE hn::Mask<DF> Inside(int32_t rows, int32_t columns) const {
    const DI di;
    return hn::RebindMask(DF(), hn::And(Between(hn::Add(row_, hn::Set(di, rows)), height_),
                                        Between(hn::Add(column_, hn::Set(di, columns)), width_)));
  }

 private:
  using DI = hn::RebindToSigned<DF>;

  // 0 <= x < end
  static HWY_INLINE hn::Mask<DI> Between(hn::Vec<DI> x, int32_t end) {
    const DI di;
    return hn::And(hn::Ge(x, hn::Zero(di)), hn::Lt(x, hn::Set(di, end)));
  }

  hn::Vec<DI> row_, column_;
  int32_t height_, width_;
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

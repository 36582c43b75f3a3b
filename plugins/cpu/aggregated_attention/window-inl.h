// Where the neighbours of a token are, and which of them are inside the image.
#if defined(MOH_CPU_AGGREGATED_ATTENTION_WINDOW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_AGGREGATED_ATTENTION_WINDOW_INL_H_
#undef MOH_CPU_AGGREGATED_ATTENTION_WINDOW_INL_H_
#else
#define MOH_CPU_AGGREGATED_ATTENTION_WINDOW_INL_H_
#endif

#include <cstdint>
#include <vector>

#include "cpu/simd/vector-inl.h"
#include "moh/aggregated_attention.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Row and column of kLanes consecutive pixels of an image.
class Pixels {
 public:
  // The first ones.
  Pixels(int32_t height, int32_t width)
      : row_(hn::Zero(DI())), column_(hn::Iota(DI(), 0)), height_(height), width_(width) {
    wrap();
  }

  // To the next kLanes pixels.
  void next() {
    column_ = hn::Add(column_, hn::Set(DI(), static_cast<int32_t>(kLanes)));
    wrap();
  }

  // Whether the pixel so many rows and columns away is inside the image.
  HWY_INLINE hn::Mask<DF> inside(int32_t rows, int32_t columns) const {
    const DI di;
    return hn::RebindMask(DF(), hn::And(between(hn::Add(row_, hn::Set(di, rows)), height_),
                                        between(hn::Add(column_, hn::Set(di, columns)), width_)));
  }

 private:
  using DI = hn::RebindToSigned<DF>;

  // Columns beyond the last one are in the next rows.
  void wrap() {
    const DI di;
    const auto width = hn::Set(di, width_);
    for (auto beyond = hn::Ge(column_, width); !hn::AllFalse(di, beyond);
         beyond = hn::Ge(column_, width)) {
      column_ = hn::Sub(column_, hn::IfThenElseZero(beyond, width));
      row_ = hn::Add(row_, hn::IfThenElseZero(beyond, hn::Set(di, 1)));
    }
  }

  // 0 <= x < end
  static HWY_INLINE hn::Mask<DI> between(hn::Vec<DI> x, int32_t end) {
    const DI di;
    return hn::And(hn::Ge(x, hn::Zero(di)), hn::Lt(x, hn::Set(di, end)));
  }

  hn::Vec<DI> row_, column_;
  int32_t height_, width_;
};

// The neighbours of consecutive tokens, which lie in panels: those at offset l of the token in
// column c are in column c + shifts[l].
struct Neighbours {
  static constexpr size_t kMaskBytes = (kLanes + 7) / 8;

  const ptrdiff_t* shifts;
  const uint8_t* masks;  // [vector of tokens][offset]
  size_t count;

  // Which of the tokens of a vector have a neighbour at offset l.
  HWY_INLINE hn::Mask<DF> inside(size_t vector, size_t l) const {
    return hn::LoadMaskBits(DF(), masks + (vector * count + l) * kMaskBytes);
  }
};

// The neighbours of all tokens of an image.
class Window {
 public:
  explicit Window(const AggregatedAttentionArgs& args) {
    const size_t tokens = static_cast<size_t>(args.height) * static_cast<size_t>(args.width);
    const size_t vectors = (tokens + kLanes - 1) / kLanes;
    for_each_offset(args, [&](int32_t y, int32_t x) {
      shifts_.push_back(static_cast<ptrdiff_t>(y) * args.width + x);
    });
    masks_.resize(vectors * shifts_.size() * Neighbours::kMaskBytes + kReadBeyond);
    uint8_t* mask = masks_.data();
    Pixels pixels(args.height, args.width);
    for (size_t vector = 0; vector < vectors; ++vector, pixels.next()) {
      for_each_offset(args, [&](int32_t y, int32_t x) HWY_ATTR {
        hn::StoreMaskBits(DF(), pixels.inside(y, x), mask);
        mask += Neighbours::kMaskBytes;
      });
    }
  }

  // Of the tokens from `token` on, a multiple of kLanes.
  Neighbours of(size_t token) const {
    const size_t masks = token / kLanes * shifts_.size() * Neighbours::kMaskBytes;
    return {shifts_.data(), masks_.data() + masks, shifts_.size()};
  }

 private:
  static constexpr size_t kReadBeyond = 8;  // LoadMaskBits may read so many bytes

  template <class Step>
  static void for_each_offset(const AggregatedAttentionArgs& args, const Step& step) {
    for (int32_t y = 0; y < args.kernel_height; ++y) {
      for (int32_t x = 0; x < args.kernel_width; ++x) {
        step(y - args.kernel_height / 2, x - args.kernel_width / 2);
      }
    }
  }

  std::vector<ptrdiff_t> shifts_;
  std::vector<uint8_t> masks_;
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

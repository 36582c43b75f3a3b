// Products of gathered rows with packed weights: where the time goes.
//
// A weight [depth, columns] is packed into panels, one for each vector of columns: a panel is
// [depth][lane]. A tile of the result is kRows gathered rows by kVectors panels in registers: for
// each depth one vector of each panel is loaded and one number of each row is broadcast.
#if defined(MOH_CPU_PROJECTION_PANELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_PROJECTION_PANELS_INL_H_
#undef MOH_CPU_PROJECTION_PANELS_INL_H_
#else
#define MOH_CPU_PROJECTION_PANELS_INL_H_
#endif

#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

constexpr size_t kMostVectors = kManyRegisters ? 4 : 3;
constexpr size_t kTileColumns = kMostVectors * kLanes;

// Rows of a tile: sums and one vector of each panel are in registers, and so are the addresses of
// the rows, of which more than 8 do not fit.
template <size_t kVectors>
constexpr size_t kTileRows =
    kManyRegisters ? (kVectors == 4 ? 6 : 8) : 12 / (kVectors + (kVectors == 1));

// A panel's part that is used by all rows before the next part is: four of them fit into a cache of
// 32 KiB.
constexpr size_t kMostDepth = 128;

// A range of `size` things cut into parts of at most `most`, about equal.
struct Cut {
  size_t size, parts;
  Cut(size_t size, size_t most, size_t fewest = 0)
      : size(size), parts(HWY_MAX(fewest, (size + most - 1) / most)) {}
  size_t Begin(size_t part) const { return part * size / parts; }
};

constexpr size_t Panels(size_t columns) { return (columns + kLanes - 1) / kLanes; }

// One panel of a weight [depth, columns]; behind the last column are zeros.
template <typename T>
void PackPanel(const T* weight, size_t depth, size_t columns, size_t panel, float* packed) {
  const size_t begin = panel * kLanes, count = HWY_MIN(kLanes, columns - begin);
  for (size_t k = 0; k < depth; ++k) {
    const T* const from = weight + k * columns + begin;
    hn::Store(count == kLanes ? LoadFloats(from) : LoadFirst(from, count), DF(),
              packed + k * kLanes);
  }
}

// What is multiplied: input[row][k] * panel[k][column] for `depth` values of k.
struct Product {
  const float* input;
  size_t input_stride;  // from row to row
  const float* panels;  // from the first column and depth on
  size_t panel_stride;  // from panel to panel
  size_t depth;
};

// Where sums are: `to` of a row becomes `from` of that row plus the product. They may be the same,
// and a stride of 0 gives every row the same start.
struct Sums {
  const float* from;
  size_t from_stride;
  float* to;
  size_t to_stride;
};

// kRows rows by kVectors panels.
template <size_t kRows, size_t kVectors>
HWY_NOINLINE void MultiplyTile(const Product& product, const Sums& sums, const int32_t* rows) {
  const DF df;
  VF tile[kRows][kVectors];
  const float* input[kRows];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    const auto row = static_cast<size_t>(rows[r]);
    input[r] = product.input + row * product.input_stride;
    const float* const from = sums.from + row * sums.from_stride;
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      tile[r][v] = hn::LoadU(df, from + v * kLanes);
    }
  }
  const float* const HWY_RESTRICT panels = product.panels;
  const size_t stride = product.panel_stride, depth = product.depth;
  for (size_t k = 0; k < depth; ++k) {
    VF weight[kVectors];
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      weight[v] = hn::Load(df, panels + v * stride + k * kLanes);
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const VF broadcast = hn::Set(df, input[r][k]);
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) {
        tile[r][v] = hn::MulAdd(broadcast, weight[v], tile[r][v]);
      }
    }
  }
  float* const first = sums.to;
  const size_t to_stride = sums.to_stride;
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    float* const to = first + static_cast<size_t>(rows[r]) * to_stride;
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      hn::StoreU(tile[r][v], df, to + v * kLanes);
    }
  }
}

// The same for `count` <= kRows rows.
template <size_t kRows, size_t kVectors>
HWY_INLINE void MultiplyLastTile(const Product& product, const Sums& sums, const int32_t* rows,
                                 size_t count) {
  if constexpr (kRows > 0) {
    if (count == kRows) {
      MultiplyTile<kRows, kVectors>(product, sums, rows);
    } else {
      MultiplyLastTile<kRows - 1, kVectors>(product, sums, rows, count);
    }
  }
}

template <size_t kVectors>
void MultiplyVectors(const Product& product, Sums sums, const int32_t* rows, size_t count) {
  constexpr size_t kRows = kTileRows<kVectors>;
  const Cut cut(product.depth, kMostDepth, 1);  // without depth, too, sums begin somewhere
  for (size_t part = 0; part < cut.parts; ++part) {
    Product now = product;
    now.input += cut.Begin(part);
    now.panels += cut.Begin(part) * kLanes;
    now.depth = cut.Begin(part + 1) - cut.Begin(part);
    size_t row = 0;
    for (; row + kRows <= count; row += kRows) {
      MultiplyTile<kRows, kVectors>(now, sums, rows + row);
    }
    MultiplyLastTile<kRows - 1, kVectors>(now, sums, rows + row, count - row);
    sums.from = sums.to;
    sums.from_stride = sums.to_stride;
  }
}

// `count` rows by `vectors` panels.
HWY_INLINE void Multiply(const Product& product, size_t vectors, const Sums& sums,
                         const int32_t* rows, size_t count) {
  switch (vectors) {
    case 1:
      return MultiplyVectors<1>(product, sums, rows, count);
    case 2:
      return MultiplyVectors<2>(product, sums, rows, count);
    case 3:
      return MultiplyVectors<3>(product, sums, rows, count);
    default:
      return MultiplyVectors<kMostVectors>(product, sums, rows, count);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

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
constexpr size_t kMostDepth = 96;

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
  float* sums;  // [row][kTileColumns]
};

// sums[row] += product, for kRows rows.
template <size_t kRows, size_t kVectors>
HWY_NOINLINE void MultiplyTile(const Product& product, const int32_t* rows) {
  const DF df;
  const auto sums_of = [&](size_t r) {
    return product.sums + static_cast<size_t>(rows[r]) * kTileColumns;
  };
  VF sums[kRows][kVectors];
  const float* input[kRows];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    input[r] = product.input + static_cast<size_t>(rows[r]) * product.input_stride;
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      sums[r][v] = hn::Load(df, sums_of(r) + v * kLanes);
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
        sums[r][v] = hn::MulAdd(broadcast, weight[v], sums[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      hn::Store(sums[r][v], df, sums_of(r) + v * kLanes);
    }
  }
}

// The same for `count` < kRows + 1 rows.
template <size_t kRows, size_t kVectors>
HWY_INLINE void MultiplyLastTile(const Product& product, const int32_t* rows, size_t count) {
  if constexpr (kRows > 0) {
    if (count == kRows) {
      MultiplyTile<kRows, kVectors>(product, rows);
    } else {
      MultiplyLastTile<kRows - 1, kVectors>(product, rows, count);
    }
  }
}

template <size_t kVectors>
void MultiplyVectors(Product product, const int32_t* rows, size_t count) {
  constexpr size_t kRows = kTileRows<kVectors>;
  const size_t depth = product.depth, parts = (depth + kMostDepth - 1) / kMostDepth;
  for (size_t part = 0; part < parts; ++part) {
    const size_t begin = part * depth / parts;
    Product now = product;
    now.input += begin;
    now.panels += begin * kLanes;
    now.depth = (part + 1) * depth / parts - begin;
    size_t row = 0;
    for (; row + kRows <= count; row += kRows) {
      MultiplyTile<kRows, kVectors>(now, rows + row);
    }
    MultiplyLastTile<kRows - 1, kVectors>(now, rows + row, count - row);
  }
}

// sums[row] += product, for `count` rows and `vectors` panels.
HWY_INLINE void Multiply(const Product& product, size_t vectors, const int32_t* rows,
                         size_t count) {
  switch (vectors) {
    case 1:
      return MultiplyVectors<1>(product, rows, count);
    case 2:
      return MultiplyVectors<2>(product, rows, count);
    case 3:
      return MultiplyVectors<3>(product, rows, count);
    default:
      return MultiplyVectors<kMostVectors>(product, rows, count);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

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

// Panels of a tile, and panels that follow each other while the rows are in the cache.
constexpr size_t kMostVectors = kManyRegisters ? 4 : 3;
constexpr size_t kMostPanels = 2 * kMostVectors;
constexpr size_t kMostColumns = kMostPanels * kLanes;

// Rows of a tile: sums and one vector of each panel are in registers, and so are the addresses of
// the rows: at most 8 fit.
template <size_t kVectors>
constexpr size_t kTileRows =
    kManyRegisters ? (kVectors == 4 ? 6 : 8) : 12 / (kVectors + (kVectors == 1));

// A sum is made of parts of at most this many products, each from 0 on: long sums are more exact,
// and a panel's part is used by all rows before the next part is: four of them fit into a cache of
// 32 KiB.
constexpr size_t kMostDepth = 128;

// A range of `size` things cut into parts of at most `most`, about equal.
struct Cut {
  size_t size, parts;
  Cut(size_t size, size_t most, size_t fewest = 0)
      : size(size), parts(HWY_MAX(fewest, (size + most - 1) / most)) {}
  size_t begin(size_t part) const { return part * size / parts; }
};

constexpr size_t panels(size_t columns) { return (columns + kLanes - 1) / kLanes; }

// One panel of a weight [depth, columns]; behind the last column are zeros.
template <typename T>
void pack_panel(const T* weight, size_t depth, size_t columns, size_t panel, float* packed) {
  const size_t begin = panel * kLanes, count = HWY_MIN(kLanes, columns - begin);
  for (size_t k = 0; k < depth; ++k) {
    const T* const from = weight + k * columns + begin;
    hn::Store(count == kLanes ? load_floats(from) : load_first(from, count), DF(),
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
HWY_NOINLINE void multiply_tile(const Product& product, const Sums& sums, const int32_t* rows) {
  const DF df;
  VF tile[kRows][kVectors];
  const float* input[kRows];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    const auto row = static_cast<size_t>(rows[r]);
    input[r] = product.input + row * product.input_stride;
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      tile[r][v] = hn::Zero(df);
    }
  }
  const float* const HWY_RESTRICT panels = product.panels;
  const size_t stride = product.panel_stride, depth = product.depth;
  // Those of the weights that registers are left for, beside the sums and one broadcast.
  constexpr size_t kHeld = kManyRegisters ? kVectors : HWY_MIN(kVectors, 2);
  for (size_t k = 0; k < depth; ++k) {
    const auto load = [&](size_t v)
                          HWY_ATTR { return hn::Load(df, panels + v * stride + k * kLanes); };
    VF weight[kHeld];
#pragma GCC unroll 4
    for (size_t v = 0; v < kHeld; ++v) {
      weight[v] = load(v);
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const VF broadcast = hn::Set(df, input[r][k]);
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) {
        tile[r][v] = hn::MulAdd(broadcast, v < kHeld ? weight[v] : load(v), tile[r][v]);
      }
      if constexpr (!kManyRegisters) {
        HWY_FENCE;  // so that no compiler takes registers for what later rows read
      }
    }
  }
  const Sums where = sums;  // stores might change what a reference refers to
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    const auto row = static_cast<size_t>(rows[r]);
    const float* const from = where.from + row * where.from_stride;
    float* const to = where.to + row * where.to_stride;
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      hn::StoreU(hn::Add(hn::LoadU(df, from + v * kLanes), tile[r][v]), df, to + v * kLanes);
    }
  }
}

// The same for `count` <= kRows rows.
template <size_t kRows, size_t kVectors>
HWY_INLINE void multiply_last_tile(const Product& product, const Sums& sums, const int32_t* rows,
                                   size_t count) {
  if constexpr (kRows > 0) {
    if (count == kRows) {
      multiply_tile<kRows, kVectors>(product, sums, rows);
    } else {
      multiply_last_tile<kRows - 1, kVectors>(product, sums, rows, count);
    }
  }
}

template <size_t kVectors>
void multiply_vectors(const Product& product, const Sums& sums, const int32_t* rows, size_t count) {
  constexpr size_t kRows = kTileRows<kVectors>;
  size_t row = 0;
  for (; row + kRows <= count; row += kRows) {
    multiply_tile<kRows, kVectors>(product, sums, rows + row);
  }
  multiply_last_tile<kRows - 1, kVectors>(product, sums, rows + row, count - row);
}

inline void multiply_part(Product product, size_t panels, Sums sums, const int32_t* rows,
                          size_t count) {
  const Cut cut(panels, kMostVectors);
  for (size_t part = 0; part < cut.parts; ++part) {
    const size_t vectors = cut.begin(part + 1) - cut.begin(part);
    switch (vectors) {
      case 1:
        multiply_vectors<1>(product, sums, rows, count);
        break;
      case 2:
        multiply_vectors<2>(product, sums, rows, count);
        break;
      case 3:
        multiply_vectors<3>(product, sums, rows, count);
        break;
      default:
        multiply_vectors<kMostVectors>(product, sums, rows, count);
    }
    product.panels += vectors * product.panel_stride;
    sums.from += vectors * kLanes;
    sums.to += vectors * kLanes;
  }
}

// `count` rows by `panels` panels.
inline void multiply(const Product& product, size_t panels, Sums sums, const int32_t* rows,
                     size_t count) {
  const Cut cut(product.depth, kMostDepth, 1);  // without depth, too, sums begin somewhere
  for (size_t part = 0; part < cut.parts; ++part) {
    Product now = product;
    now.input += cut.begin(part);
    now.panels += cut.begin(part) * kLanes;
    now.depth = cut.begin(part + 1) - cut.begin(part);
    multiply_part(now, panels, sums, rows, count);
    sums.from = sums.to;
    sums.from_stride = sums.to_stride;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

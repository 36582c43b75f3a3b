// What a task with many rows works on: tiles of rows, and a block of keys and values at a time.
#if defined(MOH_CPU_ATTENTION_TILE_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOH_CPU_ATTENTION_TILE_MEMORY_INL_H_
#undef MOH_CPU_ATTENTION_TILE_MEMORY_INL_H_
#else
#define MOH_CPU_ATTENTION_TILE_MEMORY_INL_H_
#endif

#include "cpu/attention/matrices-inl.h"
#include "cpu/attention/operands-inl.h"
#include "cpu/attention/products-inl.h"
#include "cpu/attention/sight.h"
#include "cpu/scratch.h"
#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Up to kMaxVectors vectors of rows; the lanes behind the last row repeat it.
struct Tile {
  size_t vectors, row_count;
  const int32_t* places;
  float* queries;  // [head_dim / depth][vector][lane], times scale * log2(e)
  float* outputs;  // [value_dim][vector][lane], to be divided by `sum`
  bool fresh;      // nothing is in `outputs` yet
  VF largest[kMaxVectors];
  VF sum[kMaxVectors];
  KeyRange ranges[kMaxVectors * kLanes];      // keys that the row sees
  KeyRange seen[kMaxVectors];                 // that some row of the vector sees
  KeyRange shared;                            // that all rows of the tile see
  bool masked;                                // attn_mask does something to a key that a row sees
  ptrdiff_t mask_rows[kMaxVectors * kLanes];  // where the row begins in attn_mask
  float least[kMaxVectors * kLanes];          // biases of the row up to it hide
};

using DI = hn::RebindToSigned<DF>;

// What the rows of a vector see, in lanes.
struct VectorRanges {
  hn::Vec<DI> first, end;
  HWY_INLINE VectorRanges(const Tile& tile, size_t v) {
    hn::LoadInterleaved2(DI(), &tile.ranges[v * kLanes].first, first, end);
  }
};

// Keys and values of one block, and room for the scores of one tile with them.
struct BlockKeys {
  size_t begin, count;
  float* scores;  // [key][vector][lane]
};
template <class Products>
struct Block : BlockKeys {
  OperandRows<typename Products::Operand> keys, values;
};

// What a task needs room for, in numbers and operands.
template <class Products>
struct TileSizes {
  size_t queries, outputs;             // of each tile
  size_t keys, values, scores, strip;  // of a block; `strip` is for matrices alone

  TileSizes(size_t head_dim, size_t value_dim, size_t block) {
    constexpr size_t kRow = kMaxVectors * kLanes;
    outputs = round_up(value_dim, kLanes) * kRow;
    if constexpr (Products::kInMatrices) {
      queries = matrix_operands(head_dim) * kRow;
      outputs = round_up(value_dim, kMatrixRows) * kRow;
      keys = (block + kMatrixRows) * matrix_operands(head_dim);
      values = round_up(value_dim, kMatrixRows) * value_row_operands(block);
      scores = (block + kMatrixPairs) * kRow;
      strip = kMatrixRows * kRow;
    } else {
      queries = round_up(head_dim, kLanes) * kRow;
      keys = block * row_operands<Products>(head_dim);
      values = row_operands<Products>(block) * value_dim;
      scores = block * kRow;
      strip = 0;
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
#endif

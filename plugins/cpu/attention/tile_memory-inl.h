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
  int32_t visible[kMaxVectors][kLanes];       // keys that the row sees
  ptrdiff_t mask_rows[kMaxVectors * kLanes];  // where the row begins in attn_mask

  int32_t fewest_visible() const { return visible[0][0]; }
  int32_t most_visible(size_t v) const { return visible[v][kLanes - 1]; }
};

// Keys and values of one block, and room for the scores of one tile with them.
template <class Products>
struct Block {
  OperandRows<typename Products::Operand> keys, values;
  size_t begin, count;
  float* scores;  // [key][vector][lane]

  // Leaves out the first `keys`, an even number.
  void skip(size_t skipped, size_t width) {
    keys = keys.from(skipped);
    if constexpr (Products::kInMatrices) {
      values.data += skipped / Products::kDepth;
    } else {
      values = values.from(skipped / Products::kDepth);
    }
    scores += skipped * width * kLanes;
    begin += skipped;
    count -= skipped;
  }
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

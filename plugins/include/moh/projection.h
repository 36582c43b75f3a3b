// What implementations of MoHQueryProjection and MoHOutputProjection, of the same with weights of
// few bits, and of MoHMatMulNBits are called with. docs/ops.md says what they have to compute.
#pragma once

#include "moh/tensor.h"

namespace moh {

// [tokens, in_features] -> [tokens, heads * head_dim], for the heads that a token chose.
struct QueryProjectionArgs {
  DType dtype;        // of every tensor
  const void* input;  // [tokens, in_features]
  const void* gates;  // [tokens, heads]
  const void* bias;   // [heads * head_dim] or null
  void* output;       // [tokens, heads * head_dim]
  int64_t tokens;
  int32_t in_features, heads, head_dim;
};

// [tokens, heads * head_dim] -> [tokens, out_features], from the heads that a token chose.
struct OutputProjectionArgs {
  DType dtype;        // of every tensor
  const void* input;  // [tokens, heads * head_dim]
  const void* gates;  // [tokens, heads]
  const void* bias;   // [out_features] or null
  void* output;       // [tokens, out_features]
  int64_t tokens;
  int32_t out_features, heads, head_dim;
};

// The weight of either, [depth, columns].
struct WeightArgs {
  DType dtype;
  const void* weight;
  int32_t depth, columns;
};

// A weight [depth, columns] in blocks of 32 rows, as it is stored: half of what `bits` hold is
// taken off a digit, and the rest multiplied by its block's scale.
struct NBitsWeight {
  const uint8_t* digits;  // [columns, blocks, 4 * bits]; of two in a byte the lower half is first
  const float* scales;    // [columns, blocks]
  int32_t depth, columns;
  int32_t bits;  // 4 or 8
};

// [tokens, depth] -> [tokens, columns], with such a weight. All else is float32.
struct NBitsProductArgs {
  const float* input;  // [tokens, depth]
  float* output;       // [tokens, columns]
  int64_t tokens;
};

}  // namespace moh

// What implementations of MoHQueryProjection and MoHOutputProjection, and of the same with weights
// of 4 bits, are called with. docs/ops.md says what they have to compute.
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

// The weight of either in 4 bits, [depth, columns]: 8 less than a digit, times its block's scale.
struct NBitsWeightArgs {
  const uint8_t* weight;  // [columns, blocks of 32 rows, 16]: two digits in a byte, the lower first
  const float* scales;    // [columns, blocks]
  int32_t depth, columns;
  int32_t row_heads;  // that the rows belong to; 0 if columns belong to heads
};

}  // namespace moh

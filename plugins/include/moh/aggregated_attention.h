// What an implementation of MoHAggregatedAttention is called with. docs/ops.md says what it has to
// compute.
#pragma once

#include "moh/tensor.h"

namespace moh {

// Tokens are the pixels of an image of height x width, row by row. Every tensor is contiguous; an
// absent one is null.
struct AggregatedAttentionArgs {
  DType dtype;        // of every tensor
  const void* query;  // [batch, tokens, heads * head_dim], as are key and value
  const void* key;
  const void* value;
  const void* pooled_key;  // [batch, pooled, heads * head_dim], as is pooled_value
  const void* pooled_value;
  const void* gates;            // [batch, tokens, heads]
  const void* query_embedding;  // [heads, head_dim]
  const void* query_scale;      // [heads, tokens]
  const void* window_bias;      // [heads, kernel_height * kernel_width]
  const void* pooled_bias;      // [heads, tokens, pooled]
  const void* window_tokens;    // [heads, head_dim, kernel_height * kernel_width]
  const void* window_offset;    // [heads, kernel_height * kernel_width]
  void* output;                 // [batch, tokens, heads * head_dim]
  int32_t batch, heads, head_dim, height, width, kernel_height, kernel_width, pooled;
  bool normalize;  // queries and keys to length 1
  float epsilon;   // the least length that they are divided by
};

}  // namespace moh

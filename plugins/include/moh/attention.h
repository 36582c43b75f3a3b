// What an implementation of MoHAttention is called with. docs/ops.md says what it has to compute.
#pragma once

#include "moh/tensor.h"

namespace moh {

// attn_mask, broadcast to [batch, q_head, query, key]: a stride is 0 along an axis that the mask
// does not have.
struct AttentionMask {
  const void* data = nullptr;  // null: no mask
  DType dtype = DType::kBool;
  ptrdiff_t batch = 0, head = 0, query = 0, key = 0;
};

// Where nonpad_kv_seqlen is given, it stands in for `keys`, batch by batch: neither keys nor values
// from there on are read, and causal positions count from it.
//
// Y = gates * softmax(scale * Q Kᵀ + mask) V, with rows of closed gates exactly 0.
struct AttentionArgs {
  DType dtype;  // of query, key, value, gates and output
  const void* query;
  const void* key;
  const void* value;
  const void* gates;  // [batch, query, q_head], contiguous
  void* output;
  HeadStrides query_strides, key_strides, value_strides, output_strides;
  AttentionMask mask;
  const int64_t* nonpad_kv_seqlen;  // [batch], from 0 to `keys`; null: all keys are filled
  // [1 or batch, query, 2]: the first key that a query sees, and the end of those that it sees;
  // both may lie outside of the keys that there are. Null: all.
  const int64_t* key_ranges;
  ptrdiff_t key_ranges_batch;  // stride, 0 where sequences share their ranges
  int32_t batch, q_heads, kv_heads, queries, keys, head_dim, value_dim;
  float scale;
  bool causal;  // query s sees the keys up to s + keys - queries
};

}  // namespace moh

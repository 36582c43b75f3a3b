// MoHAttention by kernels that Triton compiled: they reach the matrix units of Hopper and
// Blackwell.
#pragma once

#include "cuda/device/port.cuh"
#include "cuda/launch/attention_plan.h"
#include "cuda/launch/triton_code.h"
#include "moh/cuda.h"

namespace moh::cuda {

// What the kernel is called with, in the order of its parameters (triton/attention.py).
struct TritonAttentionArguments {
  const void *query, *key, *value, *gates;
  void* output;
  const int32_t *rows, *counts;  // null if all rows are computed
  const int64_t* ranges;
  HeadStrides query_strides, key_strides, value_strides, output_strides;
  int64_t ranges_batch;  // stride; -1: there are no ranges
  int32_t pairs, q_heads, kv_heads, queries, keys, head_dim, value_dim, causal, listed;
  float scale_log2;
  const void *global_scratch, *profile_scratch;  // that Triton appends. Null: no kernel uses them
};

// The kernel for these arguments on such a GPU, or null: it has code in this library, and computes
// what is asked for. `reason`: half a sentence, set where null is returned.
const TritonCode* find_triton_code(const AttentionArgs& args, const Device& device,
                                   int32_t key_splits, const char** reason);

// Loads code for the current device, unless it is loaded: a launch within a capture must not.
Status load_triton_code(const TritonCode& code);

// Enqueues the kernel. The arguments are checked; there is something to compute.
Status launch_triton_attention(const AttentionParams& params, const TritonCode& code,
                               cudaStream_t stream);

}  // namespace moh::cuda

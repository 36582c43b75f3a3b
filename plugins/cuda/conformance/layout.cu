#include "cuda/conformance/layout.h"

#include <cstddef>
#include <string>

#include "cuda/launch/triton_attention.h"
#include "moh/cuda.h"

namespace moh::cuda {
namespace {

struct Line {
  const char* name;
  size_t number;
};

#define MOH_SIZE(type) {#type, sizeof(type)}
#define MOH_AT(type, member) {#type "." #member, offsetof(type, member)}

constexpr Line kLines[] = {
    MOH_SIZE(HeadStrides),
    MOH_AT(HeadStrides, batch),
    MOH_AT(HeadStrides, head),
    MOH_AT(HeadStrides, token),
    MOH_SIZE(AttentionMask),
    MOH_AT(AttentionMask, data),
    MOH_AT(AttentionMask, dtype),
    MOH_AT(AttentionMask, batch),
    MOH_AT(AttentionMask, head),
    MOH_AT(AttentionMask, query),
    MOH_AT(AttentionMask, key),
    MOH_SIZE(AttentionArgs),
    MOH_AT(AttentionArgs, dtype),
    MOH_AT(AttentionArgs, query),
    MOH_AT(AttentionArgs, key),
    MOH_AT(AttentionArgs, value),
    MOH_AT(AttentionArgs, gates),
    MOH_AT(AttentionArgs, output),
    MOH_AT(AttentionArgs, query_strides),
    MOH_AT(AttentionArgs, key_strides),
    MOH_AT(AttentionArgs, value_strides),
    MOH_AT(AttentionArgs, output_strides),
    MOH_AT(AttentionArgs, mask),
    MOH_AT(AttentionArgs, nonpad_kv_seqlen),
    MOH_AT(AttentionArgs, key_ranges),
    MOH_AT(AttentionArgs, key_ranges_batch),
    MOH_AT(AttentionArgs, batch),
    MOH_AT(AttentionArgs, q_heads),
    MOH_AT(AttentionArgs, kv_heads),
    MOH_AT(AttentionArgs, queries),
    MOH_AT(AttentionArgs, keys),
    MOH_AT(AttentionArgs, head_dim),
    MOH_AT(AttentionArgs, value_dim),
    MOH_AT(AttentionArgs, scale),
    MOH_AT(AttentionArgs, causal),
    MOH_SIZE(AggregatedAttentionArgs),
    MOH_AT(AggregatedAttentionArgs, dtype),
    MOH_AT(AggregatedAttentionArgs, query),
    MOH_AT(AggregatedAttentionArgs, key),
    MOH_AT(AggregatedAttentionArgs, value),
    MOH_AT(AggregatedAttentionArgs, pooled_key),
    MOH_AT(AggregatedAttentionArgs, pooled_value),
    MOH_AT(AggregatedAttentionArgs, gates),
    MOH_AT(AggregatedAttentionArgs, query_embedding),
    MOH_AT(AggregatedAttentionArgs, query_scale),
    MOH_AT(AggregatedAttentionArgs, window_bias),
    MOH_AT(AggregatedAttentionArgs, pooled_bias),
    MOH_AT(AggregatedAttentionArgs, window_tokens),
    MOH_AT(AggregatedAttentionArgs, window_offset),
    MOH_AT(AggregatedAttentionArgs, output),
    MOH_AT(AggregatedAttentionArgs, batch),
    MOH_AT(AggregatedAttentionArgs, heads),
    MOH_AT(AggregatedAttentionArgs, head_dim),
    MOH_AT(AggregatedAttentionArgs, height),
    MOH_AT(AggregatedAttentionArgs, width),
    MOH_AT(AggregatedAttentionArgs, kernel_height),
    MOH_AT(AggregatedAttentionArgs, kernel_width),
    MOH_AT(AggregatedAttentionArgs, pooled),
    MOH_AT(AggregatedAttentionArgs, normalize),
    MOH_AT(AggregatedAttentionArgs, epsilon),
    MOH_SIZE(RouterArgs),
    MOH_AT(RouterArgs, dtype),
    MOH_AT(RouterArgs, routed_logits),
    MOH_AT(RouterArgs, shared_logits),
    MOH_AT(RouterArgs, stage_logits),
    MOH_AT(RouterArgs, gates),
    MOH_AT(RouterArgs, tokens),
    MOH_AT(RouterArgs, routed),
    MOH_AT(RouterArgs, shared),
    MOH_AT(RouterArgs, top_k),
    MOH_AT(RouterArgs, mask_only),
    MOH_SIZE(AttentionChoice),
    MOH_AT(AttentionChoice, tactic),
    MOH_AT(AttentionChoice, key_splits),
    MOH_AT(AttentionChoice, block),
    MOH_AT(AttentionChoice, reason),
    MOH_AT(AttentionChoice, kernel),
    MOH_AT(AttentionChoice, kernel_reason),
    MOH_SIZE(Device),
    MOH_AT(Device, multiprocessors),
    MOH_AT(Device, compute_capability),
    MOH_SIZE(TritonAttentionArguments),
    MOH_AT(TritonAttentionArguments, query),
    MOH_AT(TritonAttentionArguments, key),
    MOH_AT(TritonAttentionArguments, value),
    MOH_AT(TritonAttentionArguments, gates),
    MOH_AT(TritonAttentionArguments, output),
    MOH_AT(TritonAttentionArguments, rows),
    MOH_AT(TritonAttentionArguments, counts),
    MOH_AT(TritonAttentionArguments, ranges),
    MOH_AT(TritonAttentionArguments, query_strides),
    MOH_AT(TritonAttentionArguments, key_strides),
    MOH_AT(TritonAttentionArguments, value_strides),
    MOH_AT(TritonAttentionArguments, output_strides),
    MOH_AT(TritonAttentionArguments, ranges_batch),
    MOH_AT(TritonAttentionArguments, pairs),
    MOH_AT(TritonAttentionArguments, q_heads),
    MOH_AT(TritonAttentionArguments, kv_heads),
    MOH_AT(TritonAttentionArguments, queries),
    MOH_AT(TritonAttentionArguments, keys),
    MOH_AT(TritonAttentionArguments, head_dim),
    MOH_AT(TritonAttentionArguments, value_dim),
    MOH_AT(TritonAttentionArguments, causal),
    MOH_AT(TritonAttentionArguments, listed),
    MOH_AT(TritonAttentionArguments, scale_log2),
    MOH_AT(TritonAttentionArguments, global_scratch),
    MOH_AT(TritonAttentionArguments, profile_scratch),
    MOH_SIZE(TritonCode),
    MOH_AT(TritonCode, compute_capability),
    MOH_AT(TritonCode, dtype),
    MOH_AT(TritonCode, columns),
    MOH_AT(TritonCode, tile_rows),
    MOH_AT(TritonCode, threads),
    MOH_AT(TritonCode, shared_bytes),
    MOH_AT(TritonCode, kernel),
    MOH_AT(TritonCode, code),
    MOH_AT(TritonCode, code_bytes),
};

std::string text() {
  std::string result;
  for (const Line& line : kLines) {
    result += std::string(line.name) + " " + std::to_string(line.number) + "\n";
  }
  return result;
}

}  // namespace
}  // namespace moh::cuda

const char* moh_cuda_layout() {
  static const std::string result = moh::cuda::text();
  return result.c_str();
}

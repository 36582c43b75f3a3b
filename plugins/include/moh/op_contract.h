// Generated from moh_deploy/ops by tools/generate_from_ops.py: change it there.
//
// The ops of docs/ops.md, their inputs and attributes in order, and the largest sizes that plugins
// take.
#pragma once

#include "moh/contract.h"
#include "moh/tensor.h"

// clang-format off

namespace moh::contract {

inline constexpr DType kFloatTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
inline constexpr const char* kFloatTypeNames[] = {"float32", "float16", "bfloat16"};
inline constexpr char kFloatTypesText[] = "float32, float16 or bfloat16";

namespace aggregated_attention {

inline constexpr auto kNumHeads =
    AttributeContract{"num_heads", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kHeight = AttributeContract{"height", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kWidth = AttributeContract{"width", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kKernelHeight =
    AttributeContract{"kernel_height", AttributeType::kInt}.with_at_least(1).with_odd();
inline constexpr auto kKernelWidth =
    AttributeContract{"kernel_width", AttributeType::kInt}.with_at_least(1).with_odd();
inline constexpr const char* kNormalizeChoices[] = {"0", "1"};
inline constexpr auto kNormalize =
    AttributeContract{"normalize", AttributeType::kInt}.one_of(kNormalizeChoices).default_to(0);
inline constexpr auto kEpsilon =
    AttributeContract{"epsilon", AttributeType::kFloat}.with_above(0).default_to(1e-12);
inline constexpr int64_t kMostHeadDim = 256;
inline constexpr int64_t kMostWindowPlaces = 128;
inline constexpr InputContract kInputs[] = {  // name, optional, type
    {"Q", false, InputType::kShared},
    {"K", false, InputType::kShared},
    {"V", false, InputType::kShared},
    {"pooled_K", false, InputType::kShared},
    {"pooled_V", false, InputType::kShared},
    {"gates", false, InputType::kShared},
    {"query_embedding", true, InputType::kShared},
    {"query_scale", true, InputType::kShared},
    {"window_bias", true, InputType::kShared},
    {"pooled_bias", true, InputType::kShared},
    {"window_tokens", true, InputType::kShared},
    {"window_offset", true, InputType::kShared},
};
inline constexpr AttributeContract kAttributes[] = {
    kNumHeads,
    kHeight,
    kWidth,
    kKernelHeight,
    kKernelWidth,
    kNormalize,
    kEpsilon,
};
inline constexpr OpContract kOp = make_contract("MoHAggregatedAttention", kInputs, kAttributes);

}  // namespace aggregated_attention

namespace attention {

inline constexpr auto kQNumHeads =
    AttributeContract{"q_num_heads", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kKvNumHeads =
    AttributeContract{"kv_num_heads", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kScale = AttributeContract{"scale", AttributeType::kFloat};
inline constexpr const char* kIsCausalChoices[] = {"0", "1"};
inline constexpr auto kIsCausal =
    AttributeContract{"is_causal", AttributeType::kInt}.one_of(kIsCausalChoices).default_to(0);
inline constexpr int64_t kMostHeadDim = 256;
inline constexpr int64_t kMostValueDim = 256;
inline constexpr InputContract kInputs[] = {  // name, optional, type
    {"Q", false, InputType::kShared},
    {"K", false, InputType::kShared},
    {"V", false, InputType::kShared},
    {"gates", false, InputType::kShared},
    {"attn_mask", true, InputType::kMask},
    {"nonpad_kv_seqlen", true, InputType::kLengths},
    {"key_ranges", true, InputType::kLengths},
};
inline constexpr AttributeContract kAttributes[] = {
    kQNumHeads,
    kKvNumHeads,
    kScale,
    kIsCausal,
};
inline constexpr OpContract kOp = make_contract("MoHAttention", kInputs, kAttributes);

}  // namespace attention

namespace query_projection {

inline constexpr auto kNumHeads =
    AttributeContract{"num_heads", AttributeType::kInt}.with_at_least(1);
inline constexpr InputContract kInputs[] = {  // name, optional, type
    {"X", false, InputType::kShared},
    {"W", false, InputType::kShared},
    {"gates", false, InputType::kShared},
    {"bias", true, InputType::kShared},
};
inline constexpr AttributeContract kAttributes[] = {
    kNumHeads,
};
inline constexpr OpContract kOp = make_contract("MoHQueryProjection", kInputs, kAttributes);

}  // namespace query_projection

namespace output_projection {

inline constexpr auto kNumHeads =
    AttributeContract{"num_heads", AttributeType::kInt}.with_at_least(1);
inline constexpr InputContract kInputs[] = {  // name, optional, type
    {"X", false, InputType::kShared},
    {"W", false, InputType::kShared},
    {"gates", false, InputType::kShared},
    {"bias", true, InputType::kShared},
};
inline constexpr AttributeContract kAttributes[] = {
    kNumHeads,
};
inline constexpr OpContract kOp = make_contract("MoHOutputProjection", kInputs, kAttributes);

}  // namespace output_projection

namespace mat_mul_n_bits {

inline constexpr auto kInFeatures =
    AttributeContract{"in_features", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kOutFeatures =
    AttributeContract{"out_features", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kBits = AttributeContract{"bits", AttributeType::kInt}.with_at_least(1);
inline constexpr InputContract kInputs[] = {  // name, optional, type
    {"X", false, InputType::kShared},
    {"W", false, InputType::kPacked},
    {"scales", false, InputType::kShared},
};
inline constexpr AttributeContract kAttributes[] = {
    kInFeatures,
    kOutFeatures,
    kBits,
};
inline constexpr OpContract kOp = make_contract("MoHMatMulNBits", kInputs, kAttributes);

}  // namespace mat_mul_n_bits

namespace query_projection_n_bits {

inline constexpr auto kNumHeads =
    AttributeContract{"num_heads", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kInFeatures =
    AttributeContract{"in_features", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kOutFeatures =
    AttributeContract{"out_features", AttributeType::kInt}.with_at_least(1);
inline constexpr InputContract kInputs[] = {  // name, optional, type
    {"X", false, InputType::kShared},
    {"W", false, InputType::kPacked},
    {"gates", false, InputType::kShared},
    {"scales", false, InputType::kShared},
    {"bias", true, InputType::kShared},
};
inline constexpr AttributeContract kAttributes[] = {
    kNumHeads,
    kInFeatures,
    kOutFeatures,
};
inline constexpr OpContract kOp = make_contract("MoHQueryProjectionNBits", kInputs, kAttributes);

}  // namespace query_projection_n_bits

namespace output_projection_n_bits {

inline constexpr auto kNumHeads =
    AttributeContract{"num_heads", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kInFeatures =
    AttributeContract{"in_features", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kOutFeatures =
    AttributeContract{"out_features", AttributeType::kInt}.with_at_least(1);
inline constexpr InputContract kInputs[] = {  // name, optional, type
    {"X", false, InputType::kShared},
    {"W", false, InputType::kPacked},
    {"gates", false, InputType::kShared},
    {"scales", false, InputType::kShared},
    {"bias", true, InputType::kShared},
};
inline constexpr AttributeContract kAttributes[] = {
    kNumHeads,
    kInFeatures,
    kOutFeatures,
};
inline constexpr OpContract kOp = make_contract("MoHOutputProjectionNBits", kInputs, kAttributes);

}  // namespace output_projection_n_bits

namespace router {

inline constexpr auto kTopK = AttributeContract{"top_k", AttributeType::kInt}.with_at_least(0);
inline constexpr auto kNumSharedHeads =
    AttributeContract{"num_shared_heads", AttributeType::kInt}.with_at_least(0).default_to(0);
inline constexpr const char* kGateModeChoices[] = {"weighted", "mask"};
inline constexpr auto kGateMode =
    AttributeContract{"gate_mode", AttributeType::kText}.one_of(kGateModeChoices).default_to(0);
inline constexpr int64_t kMostRoutedHeads = 4096;
inline constexpr int64_t kMostSharedHeads = 4096;
inline constexpr InputContract kInputs[] = {  // name, optional, type
    {"routed_logits", true, InputType::kShared},
    {"shared_logits", true, InputType::kShared},
    {"stage_logits", true, InputType::kShared},
};
inline constexpr AttributeContract kAttributes[] = {
    kTopK,
    kNumSharedHeads,
    kGateMode,
};
inline constexpr OpContract kOp = make_contract("MoHRouter", kInputs, kAttributes);

}  // namespace router

namespace token_conv {

inline constexpr auto kChannels =
    AttributeContract{"channels", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kHeight = AttributeContract{"height", AttributeType::kInt}.with_at_least(1);
inline constexpr auto kWidth = AttributeContract{"width", AttributeType::kInt}.with_at_least(1);
inline constexpr const char* kActivationChoices[] = {"none", "gelu"};
inline constexpr auto kActivation =
    AttributeContract{"activation", AttributeType::kText}.one_of(kActivationChoices).default_to(0);
inline constexpr const char* kGatedChoices[] = {"0", "1"};
inline constexpr auto kGated =
    AttributeContract{"gated", AttributeType::kInt}.one_of(kGatedChoices).default_to(0);
inline constexpr InputContract kInputs[] = {  // name, optional, type
    {"X", false, InputType::kShared},
    {"W", false, InputType::kShared},
    {"bias", true, InputType::kShared},
    {"input_bias", true, InputType::kShared},
};
inline constexpr AttributeContract kAttributes[] = {
    kChannels,
    kHeight,
    kWidth,
    kActivation,
    kGated,
};
inline constexpr OpContract kOp = make_contract("MoHTokenConv", kInputs, kAttributes);

}  // namespace token_conv

}  // namespace moh::contract

// clang-format on

#include "nodes/router.h"

#include <limits>

namespace moh::node {
namespace {

// [batch, tokens], the same for all logits.
Shape read_tokens(const Tensors& in) {
  Shape tokens;
  for (size_t i = 0; i < in.size(); ++i) {
    if (!in[i].present) {
      continue;
    }
    const Shape& shape = in[i].shape;
    if (tokens.empty() && shape.size() == 3) {
      tokens = {shape[0], shape[1]};
    }
    if (shape.size() != 3 || shape[0] != tokens[0] || shape[1] != tokens[1]) {
      refuse(contract::router::kInputs[i].name, " is ", shape_text(shape),
             "; expected [batch, tokens, heads], with one batch and tokens for all logits.");
    }
  }
  if (tokens.empty()) {
    refuse("no logits are given; expected at least one of three.");
  }
  return tokens;
}

void check_heads(const Tensors& in, int64_t routed, const RouterArgs& args) {
  const Tensor &shared = in[1], &stage = in[2];
  if (!in[0].present && args.top_k != 0) {
    refuse("top_k is ", args.top_k, "; expected 0 without routed_logits.");
  }
  if (in[0].present && (args.top_k < 1 || args.top_k > routed)) {
    refuse("top_k is ", args.top_k, "; expected 1 to ", routed, ", the number of routed heads.");
  }
  if (shared.present && (args.shared < 1 || shared.shape[2] != args.shared)) {
    refuse("shared_logits is ", shape_text(shared.shape), "; expected num_shared_heads, ",
           args.shared, ", as its last size, and at least 1.");
  }
  if (stage.present && stage.shape[2] != 2) {
    refuse("stage_logits is ", shape_text(stage.shape), "; expected 2 as its last size.");
  }
  if (args.mask_only && (shared.present || stage.present)) {
    refuse("gate_mode is 'mask'; expected neither shared_logits nor stage_logits, since every ",
           "open gate is 1.");
  }
  constexpr int64_t kMostHeads = std::numeric_limits<int32_t>::max();
  if (args.shared + routed < 1 || args.shared + routed > kMostHeads) {
    refuse("there are ", args.shared, " shared and ", routed,
           " routed heads; expected at least one, and fewer than 2^31.");
  }
}

}  // namespace

Shape Router::read(const Attributes& attributes, const Tensors& in, Args& args) {
  args.top_k = attributes.integer(contract::router::kTopK);
  args.shared = attributes.integer(contract::router::kNumSharedHeads);
  args.mask_only = attributes.flag(contract::router::kGateMode);
  const Shape tokens = read_tokens(in);
  const int64_t routed = in[0].present ? in[0].shape[2] : 0;
  check_heads(in, routed, args);
  for (const Tensor& logits : in) {
    args.dtype = logits.present ? logits.dtype : args.dtype;
  }
  args.routed_logits = in[0].data;
  args.shared_logits = in[1].data;
  args.stage_logits = in[2].data;
  args.tokens = tokens[0] * tokens[1];
  args.routed = static_cast<int32_t>(routed);
  return {tokens[0], tokens[1], args.shared + routed};
}

}  // namespace moh::node

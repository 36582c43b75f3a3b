#include "ort/router_op.h"

#include <limits>

namespace moh::ort {
namespace {

constexpr const char* kName = contract::router::kOp.name;

}  // namespace

RouterKernel::RouterKernel(const OrtKernelInfo* info, DType dtype, const Backend& backend)
    : dtype_(dtype), backend_(backend) {
  const Ort::ConstKernelInfo node(info);
  top_k_ = int_attribute(node, contract::router::kTopK);
  shared_ = int_attribute(node, contract::router::kNumSharedHeads);
  mask_only_ = choice_attribute(node, contract::router::kGateMode) == 1;
}

Ort::Status RouterKernel::compute(Ort::KernelContext& context) const {
  const Tensors in{read_input(context, 0), read_input(context, 1), read_input(context, 2)};
  RouterArgs args{};
  Shape shape;  // [batch, tokens, heads]
  if (auto status = read_sizes(in, args, shape); !status.IsOK()) {
    return status;
  }
  args.gates = context.GetOutput(0, shape).GetTensorMutableRawData();
  return backend_.router(args, context);
}

Ort::Status RouterKernel::read_sizes(const Tensors& in, RouterArgs& args, Shape& gates) const {
  Shape tokens;  // [batch, tokens]
  if (auto status = read_tokens(in, tokens); !status.IsOK()) {
    return status;
  }
  if (auto status = check_heads(in); !status.IsOK()) {
    return status;
  }
  const int64_t routed = in.routed.present ? in.routed.shape[2] : 0;
  gates = {tokens[0], tokens[1], shared_ + routed};
  args.dtype = dtype_;
  args.routed_logits = in.routed.data;
  args.shared_logits = in.shared.data;
  args.stage_logits = in.stage.data;
  args.tokens = gates[0] * gates[1];
  args.routed = static_cast<int32_t>(routed);
  args.shared = static_cast<int32_t>(shared_);
  args.top_k = static_cast<int32_t>(top_k_);
  args.mask_only = mask_only_;
  return Ort::Status();
}

Ort::Status RouterKernel::read_tokens(const Tensors& in, Shape& tokens) {
  const Input* const inputs[] = {&in.routed, &in.shared, &in.stage};
  for (size_t i = 0; i < contract::router::kOp.num_inputs; ++i) {
    if (!inputs[i]->present) {
      continue;
    }
    const Shape& shape = inputs[i]->shape;
    if (tokens.empty() && shape.size() == 3) {
      tokens = {shape[0], shape[1]};
    }
    if (shape.size() != 3 || shape[0] != tokens[0] || shape[1] != tokens[1]) {
      return invalid_argument(
          kName, ": ", contract::router::kInputs[i].name, " is ", shape_text(shape),
          "; expected [batch, tokens, heads], with one batch and tokens for all logits.");
    }
  }
  if (tokens.empty()) {
    return invalid_argument(kName, ": no logits are given; expected at least one of three.");
  }
  return Ort::Status();
}

Ort::Status RouterKernel::check_heads(const Tensors& in) const {
  const int64_t routed = in.routed.present ? in.routed.shape[2] : 0;
  if (!in.routed.present && top_k_ != 0) {
    return invalid_argument(kName, ": top_k is ", top_k_, "; expected 0 without routed_logits.");
  }
  if (in.routed.present && (top_k_ < 1 || top_k_ > routed)) {
    return invalid_argument(kName, ": top_k is ", top_k_, "; expected 1 to ", routed,
                            ", the number of routed heads.");
  }
  if (in.shared.present && (shared_ < 1 || in.shared.shape[2] != shared_)) {
    return invalid_argument(kName, ": shared_logits is ", shape_text(in.shared.shape),
                            "; expected num_shared_heads, ", shared_,
                            ", as its last size, and at least 1.");
  }
  if (in.stage.present && in.stage.shape[2] != 2) {
    return invalid_argument(kName, ": stage_logits is ", shape_text(in.stage.shape),
                            "; expected 2 as its last size.");
  }
  if (mask_only_ && (in.shared.present || in.stage.present)) {
    return invalid_argument(kName, ": gate_mode is 'mask'; expected neither shared_logits nor ",
                            "stage_logits, since every open gate is 1.");
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (shared_ + routed < 1 || shared_ + routed > kMost) {
    return invalid_argument(kName, ": there are ", shared_, " shared and ", routed,
                            " routed heads; expected at least one, and fewer than 2^31.");
  }
  return Ort::Status();
}

}  // namespace moh::ort

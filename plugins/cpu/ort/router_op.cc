#include "cpu/ort/router_op.h"

#include <limits>

namespace moh::ort {

RouterKernel::RouterKernel(const OrtKernelInfo* info, DType dtype, const cpu::Kernels& kernels)
    : dtype_(dtype), kernels_(kernels) {
  const Ort::ConstKernelInfo attributes(info);
  top_k_ = attributes.GetAttribute<int64_t>("top_k");
  shared_ = AttributeOr<int64_t>(attributes, "num_shared_heads", 0);
  const auto mode = AttributeOr<std::string>(attributes, "gate_mode", "weighted");
  if (mode != "weighted" && mode != "mask") {
    throw std::invalid_argument("gate_mode is '" + mode + "'; expected weighted or mask.");
  }
  mask_only_ = mode == "mask";
}

OrtStatusPtr RouterKernel::ComputeV2(OrtKernelContext* context) const {
  return AsStatus("MoHRouter", [&] {
    Ort::KernelContext wrapped(context);
    return Compute(wrapped);
  });
}

Ort::Status RouterKernel::Compute(Ort::KernelContext& context) const {
  const Tensors in{ReadInput(context, 0), ReadInput(context, 1), ReadInput(context, 2)};
  RouterArgs args{};
  Shape shape;  // [batch, tokens, heads]
  if (auto status = ReadSizes(in, args, shape); !status.IsOK()) {
    return status;
  }
  args.gates = context.GetOutput(0, shape).GetTensorMutableRawData();
  kernels_.router(args, SessionThreads(context));
  return Ort::Status();
}

Ort::Status RouterKernel::ReadSizes(const Tensors& in, RouterArgs& args, Shape& gates) const {
  const std::pair<const char*, const Input*> inputs[] = {
      {"routed_logits", &in.routed}, {"shared_logits", &in.shared}, {"stage_logits", &in.stage}};
  const Input* first = nullptr;
  for (const auto& [name, input] : inputs) {
    if (!input->present) {
      continue;
    }
    if (first == nullptr) {
      first = input;
    }
    if (input->shape.size() != 3 || input->shape[0] != first->shape[0] ||
        input->shape[1] != first->shape[1]) {
      return InvalidArgument(
          "MoHRouter: ", name, " is ", Text(input->shape),
          "; expected [batch, tokens, heads], with one batch and tokens for all logits.");
    }
  }
  if (first == nullptr) {
    return InvalidArgument("MoHRouter: no logits are given; expected at least one of three.");
  }
  const int64_t routed = in.routed.present ? in.routed.shape[2] : 0;
  if (top_k_ < (in.routed.present ? 1 : 0) || top_k_ > routed) {
    return InvalidArgument("MoHRouter: top_k is ", top_k_, "; expected 1 to ", routed,
                           ", the number of routed heads.");
  }
  if (shared_ < 0 || (in.shared.present && in.shared.shape[2] != shared_)) {
    return InvalidArgument("MoHRouter: shared_logits is ", Text(in.shared.shape),
                           "; expected num_shared_heads, ", shared_, ", as its last size.");
  }
  if (in.stage.present && in.stage.shape[2] != 2) {
    return InvalidArgument("MoHRouter: stage_logits is ", Text(in.stage.shape),
                           "; expected 2 as its last size.");
  }
  if (routed + shared_ > std::numeric_limits<int32_t>::max()) {
    return InvalidArgument("MoHRouter: too many heads.");
  }
  gates = {first->shape[0], first->shape[1], shared_ + routed};
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

}  // namespace moh::ort
